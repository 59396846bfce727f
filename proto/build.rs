//! Compiles the contracts without protoc, and refuses those that say too little: a method without who may call it, how
//! long it may take and whether it may be repeated; a reason without its status code.

use std::{collections::BTreeSet, env, fmt::Write as _, fs, path::PathBuf};

use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, Kind, MethodDescriptor, ReflectMessage, Value,
};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    println!("cargo:rerun-if-changed=boxoffice");
    println!("cargo:rerun-if-changed=google");
    let files = proto_files("boxoffice".into())?;
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;
    // Only the encoded set keeps our options and google.api.http: the typed one drops what it does not know.
    let encoded = compiler.encode_file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), &encoded)?;

    let pool = DescriptorPool::decode(encoded.as_slice())?;
    fs::write(out.join("policy.rs"), policy_tables(&pool)?)?;

    tonic_prost_build::configure()
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

fn proto_files(dir: PathBuf) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(proto_files(path)?);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The tables `METHODS` and `REASONS`, and `Reason` for every `ErrorReason`.
fn policy_tables(pool: &DescriptorPool) -> Result<String, Error> {
    let mut methods: Vec<MethodDescriptor> =
        pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
    methods.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    let mut code =
        String::from("/// The policy of every method, sorted by path.\npub static METHODS: &[Method] = &[\n");
    for method in &methods {
        writeln!(
            code,
            "    {},",
            method_entry(pool, method).map_err(|why| format!("{}: {why}", method.full_name()))?
        )?;
    }
    code.push_str("];\n\n/// Every error reason, sorted by domain, then by number.\npub static REASONS: &[ReasonInfo] = &[\n");

    let mut registries: Vec<EnumDescriptor> =
        pool.all_enums().filter(|registry| registry.name() == "ErrorReason").collect();
    registries.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    let mut index = 0;
    let mut impls = String::new();
    for registry in &registries {
        let module = registry.package_name().trim_start_matches("boxoffice.").replace('.', "::");
        writeln!(
            impls,
            "impl Reason for crate::{module}::ErrorReason {{\n    fn info(self) -> &'static ReasonInfo {{\n        match self {{"
        )?;
        for value in registry.values() {
            let (entry, variant) =
                reason_entry(pool, &value).map_err(|why| format!("{}: {why}", value.full_name()))?;
            writeln!(code, "    {entry},")?;
            writeln!(impls, "            Self::{variant} => &REASONS[{index}],")?;
            index += 1;
        }
        impls.push_str("        }\n    }\n}\n\n");
    }
    code.push_str("];\n\n");
    code.push_str(&impls);
    Ok(code)
}

fn method_entry(pool: &DescriptorPool, method: &MethodDescriptor) -> Result<String, Error> {
    let options = method.options();
    let call = message_option(pool, &options, "boxoffice.options.v1.call")
        .ok_or("needs the option (boxoffice.options.v1.call)")?;
    let access = enum_name(&call, "access")?;
    let access = match access.strip_prefix("ACCESS_").unwrap_or_default() {
        "PUBLIC" => "Public",
        "USER" => "User",
        "ORGANIZER" => "Organizer",
        "ADMIN" => "Admin",
        "INTERNAL" => "Internal",
        _ => return Err("needs an access level: who may call it".into()),
    };
    let deadline = call.get_field_by_name("deadline").ok_or("needs a deadline")?;
    let deadline = deadline.as_message().ok_or("needs a deadline")?;
    let seconds = deadline.get_field_by_name("seconds").and_then(|value| value.as_i64()).unwrap_or_default();
    let nanos = deadline.get_field_by_name("nanos").and_then(|value| value.as_i32()).unwrap_or_default();
    let deadline_ms = seconds * 1000 + i64::from(nanos) / 1_000_000;
    if deadline_ms <= 0 {
        return Err("needs a deadline above zero".into());
    }
    let key = match enum_name(&call, "idempotency_key")?.as_str() {
        "IDEMPOTENCY_KEY_UNSPECIFIED" => "None",
        "IDEMPOTENCY_KEY_REQUIRED" => "Required",
        _ => "Optional",
    };
    let key_field = method
        .input()
        .get_field_by_name("request_id")
        .filter(|field| field.kind() == Kind::String && !field.is_list())
        .map(|field| field.number());
    if key_field.is_some() != (key != "None") {
        return Err("idempotency_key and the string field `request_id` go together".into());
    }
    if !options.has_field_by_name("idempotency_level") {
        return Err("needs an idempotency_level".into());
    }
    let repeat = match enum_name(&options, "idempotency_level")?.as_str() {
        "NO_SIDE_EFFECTS" => "NoSideEffects",
        "IDEMPOTENT" => "Idempotent",
        _ => "Unsafe",
    };
    let yields = call.get_field_by_name("yields").and_then(|value| value.as_bool()).unwrap_or_default();
    let has_route = message_option(pool, &options, "google.api.http").is_some();
    if has_route && access == "Internal" {
        return Err("is internal and may have no REST path".into());
    }
    Ok(format!(
        "Method {{ path: \"/{}/{}\", access: Access::{access}, deadline: Duration::from_millis({deadline_ms}), \
         idempotency_key: IdempotencyKey::{key}, key_field: {key_field:?}, repeat: Repeat::{repeat}, streams: {}, \
         yields: {yields} }}",
        method.parent_service().full_name(),
        method.name(),
        method.is_server_streaming()
    ))
}

fn reason_entry(
    pool: &DescriptorPool,
    value: &prost_reflect::EnumValueDescriptor,
) -> Result<(String, String), Error> {
    let reason = value.name().strip_prefix("ERROR_REASON_").ok_or("lacks the prefix ERROR_REASON_")?;
    let policy = message_option(pool, &value.options(), "boxoffice.options.v1.error")
        .ok_or("needs the option (boxoffice.options.v1.error)")?;
    let number =
        |field: &str| policy.get_field_by_name(field).and_then(|value| value.as_i32()).unwrap_or_default();
    let grpc_code = number("code");
    if !BTreeSet::from_iter(1..=16).contains(&grpc_code) {
        return Err("needs a gRPC status code of 1 to 16".into());
    }
    let domain = value.parent_enum().package_name().trim_end_matches(".v1").to_owned();
    let variant: String =
        reason.split('_').map(|word| word[..1].to_owned() + &word[1..].to_lowercase()).collect();
    let http = match number("http_status") {
        0 => "None".to_owned(),
        status => format!("Some({status})"),
    };
    let entry = format!(
        "ReasonInfo {{ domain: \"{domain}\", reason: \"{reason}\", code: {grpc_code}, http_override: {http} }}"
    );
    Ok((entry, variant))
}

/// The message in an option, if it is set.
fn message_option(pool: &DescriptorPool, options: &DynamicMessage, name: &str) -> Option<DynamicMessage> {
    let extension = pool.get_extension_by_name(name)?;
    if !options.has_extension(&extension) {
        return None;
    }
    options.get_extension(&extension).as_message().cloned()
}

/// The name of an enum field's value.
fn enum_name(message: &DynamicMessage, field: &str) -> Result<String, Error> {
    let descriptor = message.descriptor().get_field_by_name(field).ok_or("has no such option")?;
    let value = message.get_field(&descriptor);
    match (descriptor.kind(), value.as_ref()) {
        (Kind::Enum(registry), Value::EnumNumber(number)) => {
            Ok(registry.get_value(*number).ok_or("has an unknown value")?.name().to_owned())
        }
        _ => Err("is not an enum".into()),
    }
}
