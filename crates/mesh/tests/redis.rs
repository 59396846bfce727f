//! Redis that hangs, and a cluster that moves its keys.

use std::time::Duration;

use fred::{
    interfaces::KeysInterface,
    types::{Value, scripts::Script},
};
use mesh::{redis::Redis, shutdown::Shutdown};
use mesh_test::{FaultProxy, Mode, RedisCluster, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

async fn connect(url: &str) -> Redis {
    let redis = Redis::start(&url.parse().unwrap());
    redis.wait(&Shutdown::new()).await;
    redis
}

async fn get(redis: &Redis, key: &str) -> Result<Option<String>, String> {
    let client = redis.connected().map_err(|error| error.to_string())?;
    client.get(key).await.map_err(|error| error.to_string())
}

/// What hangs says nothing, and keeps its connections: while there is traffic, only asking finds it out.
#[tokio::test]
#[ignore = "needs Redis: scripts/test runs it"]
async fn a_redis_that_hangs_is_given_up_and_found_again() {
    let server = mesh_test::Redis::start().await;
    for mode in [Mode::Blackhole, Mode::Stall] {
        let proxy = FaultProxy::start(server.address().parse().unwrap()).await;
        let redis = connect(&format!("redis://{}", proxy.address())).await;
        assert_eq!(get(&redis, "seat").await, Ok(None));
        proxy.set_mode(mode);
        wait_until("the connection to be given up", PATIENCE, async || match redis.connected() {
            Err(_) => Ok(()),
            Ok(_) => Err(format!("{:?}", get(&redis, "seat").await)),
        })
        .await;
        proxy.set_mode(Mode::Pass);
        wait_until("a new connection", PATIENCE, async || get(&redis, "seat").await.map(drop)).await;
    }
}

/// The servers of a cluster send their clients on while keys are being moved (ASK), which fred gives up over, and once they
/// were (MOVED). Neither may end the connection for good.
#[tokio::test]
#[ignore = "needs Redis: scripts/test runs it"]
async fn a_cluster_may_move_its_keys() {
    let mut cluster = RedisCluster::start().await;
    let redis = connect(&cluster.url()).await;
    let script = Script::from_lua("return redis.call('SET', KEYS[1], ARGV[1])");
    let nodes = cluster.nodes();
    let slot = nodes[0].command("CLUSTER KEYSLOT seat").trim_start_matches(':').to_owned();
    let owner = nodes.iter().position(|node| node.command("GET seat") == "$-1").unwrap();
    let (from, to) = (&nodes[owner], &nodes[(owner + 1) % 3]);
    let name = |node: &mesh_test::Redis| node.ask("CLUSTER MYID").remove(1);
    let set = async |value: &str| {
        let arguments = vec![Value::from(value.to_owned())];
        let answer = redis.run::<String>(&script, vec!["seat".to_owned()], arguments).await;
        answer.map(drop).map_err(|error| format!("{error:?}"))
    };
    set("A").await.unwrap();
    assert_eq!(to.command(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", name(from))), "+OK");
    assert_eq!(from.command(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", name(to))), "+OK");
    assert_eq!(from.command("DEL seat"), ":1");
    for _ in 0..3 {
        let _ = get(&redis, "seat").await;
        wait_until("the others to be served", PATIENCE, async || get(&redis, "another").await).await;
    }
    for node in [to, from] {
        assert_eq!(node.command(&format!("CLUSTER SETSLOT {slot} NODE {}", name(to))), "+OK");
    }
    wait_until("the new server to be found", PATIENCE, async || set("S").await).await;
    assert_eq!(get(&redis, "seat").await, Ok(Some("S".to_owned())));
}
