//! The REST API as clients see it, kept as a file: a change of the API shows in its review.

use std::{fs, path::Path};

use gateway_rest::{descriptors::routes, openapi};

#[test]
fn the_description_is_the_golden_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/openapi.json");
    let description = openapi::describe(&routes().unwrap()).unwrap();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, serde_json::to_string_pretty(&description).unwrap() + "\n").unwrap();
    }
    let golden: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert!(
        description == golden,
        "the REST API has changed; if it should, renew the file with \
         `UPDATE_GOLDEN=1 cargo test -p gateway-rest --test openapi` and look at its diff"
    );
}
