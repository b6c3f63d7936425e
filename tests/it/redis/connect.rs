//! Connecting: every mode, access rights, TLS, and the message for each mistake.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use jam_session::{
    Backend, Builder, Count, Created, Error, ErrorKind, RedisServer, RedisSessions, Terms, stores::redis::Level,
};
use serde_json::json;

use super::{
    contract::{anonymous, of, owner, record},
    harness::{
        Place, Topology, binaries, binary, cluster, connected, connected_over, grant, patient, rights, sentinel,
        server, soon,
    },
    process::{Process, until},
    wire::{Address, Reply, Wire},
};
use crate::store::Plain;
use crate::{events::Events, ports::ports};

crate::on_every_redis!(
    the_doctor_knows_the_server,
    a_connection_of_the_application_will_do,
    the_documented_rights_are_enough,
    nothing_is_left_of_the_self_test,
);

fn config(result: Result<RedisSessions, Error>) -> String {
    let error = result.expect_err("it cannot work");
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    error.to_string()
}

/// Says why it cannot connect. A busy machine may be too slow to find that out the first time.
async fn config_soon(builder: impl Fn() -> Builder<RedisServer>) -> String {
    config(soon(builder).await)
}

/// The same for a server that may come later: whatever is not refused for good connects.
async fn config_soon_though_lazy(builder: impl Fn() -> Builder<RedisServer>) -> String {
    let begun = Instant::now();
    loop {
        match patient(builder()).lazy(true).connect().await {
            Ok(_) => assert!(begun.elapsed() < Duration::from_secs(300), "it connects"),
            refused => return config(refused),
        }
    }
}

fn unavailable(result: Result<RedisSessions, Error>) {
    assert_eq!(result.expect_err("nothing is there").kind(), ErrorKind::Unavailable);
}

/// A port on which nothing listens.
fn nobody() -> String {
    Address::Port(ports(1)[0]).uri()
}

#[tokio::test]
async fn a_uri_that_is_none_is_refused_and_not_repeated() {
    for uri in ["", "localhost", "http://localhost", "redis://:sesame@localhost:port", "redis://localhost/sesame"] {
        let message = config(RedisSessions::connect(uri).await);
        assert!(message.contains("redis://") && !message.contains("sesame"), "{message}");
    }
    let builder = RedisSessions::builder("redis://:sesame@localhost");
    assert!(!format!("{builder:?}").contains("sesame"));
}

#[tokio::test]
async fn options_that_cannot_work_are_refused() {
    config(RedisSessions::builder("redis://localhost").deadline(Duration::ZERO).connect().await);
    config(RedisSessions::builder("redis://localhost").deadline(Duration::from_secs(60)).connect().await);
    config(RedisSessions::builder("redis://localhost").namespace("a{b").connect().await);
    config(RedisSessions::builder("redis://localhost/3").cluster(Vec::<String>::new()).connect().await);
    config(RedisSessions::builder("unix:///tmp/redis.sock").cluster(["redis://localhost"]).connect().await);
    config(RedisSessions::builder("redis://localhost").sentinel(Vec::<String>::new(), "mymaster").connect().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_wrong_is_said_at_once() {
    for binary in binaries() {
        let server = Process::start_on(&binary, ports(1)[0], &["--requirepass", "sesame"]);
        let at = |who: &str| format!("redis://{who}127.0.0.1:{}", server.address.port());
        let wrong = || RedisSessions::builder(at(":wrong@"));
        let message = config_soon(wrong).await;
        assert!(message.contains("credentials") && !message.contains("wrong"), "{message}");
        config_soon_though_lazy(wrong).await;
        config_soon(|| RedisSessions::builder(at(""))).await;
        config_soon(|| RedisSessions::builder(at("nobody:sesame@"))).await;

        let sessions = connected(|| RedisSessions::builder(at(":sesame@") + "/3")).await;
        sessions.create("ada", json!({})).await.unwrap();
        let mut wire = Wire::connect(&server.address).unwrap();
        wire.ask(&["AUTH", "sesame"]);
        assert!(wire.ask(&["INFO", "keyspace"]).text().contains("db3:keys=1"));
        // A user who may do no more than what sessions need.
        let rights = rights("always", 0);
        let user = ["ACL", "SETUSER", "app", "on", ">pw"];
        let all: Vec<&str> = user.into_iter().chain(rights.iter().map(String::as_str)).collect();
        assert!(!wire.ask(&all).is_error());
        let sessions = connected(|| RedisSessions::builder(at("app:pw@"))).await;
        let id = sessions.create("ada", json!({})).await.unwrap();
        sessions.update(&id, json!({"a": 1})).await.unwrap();
        assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
        assert_eq!(sessions.clear("ada").await.unwrap(), 1);
        sessions.create("ada", json!({})).await.unwrap();
        sessions.delete(&id).await.unwrap();
        let findings = sessions.doctor().await;
        assert!(findings.iter().all(|finding| finding.level != Level::Problem), "{findings:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_of_a_cluster_that_is_wrong_is_said_too() {
    let Some(binary) = binary() else { return };
    let node = Process::start_on(&binary, ports(1)[0], &["--cluster-enabled", "yes", "--requirepass", "sesame"]);
    let uri = format!("redis://:wrong@127.0.0.1:{}", node.address.port());
    let message = config_soon(|| RedisSessions::builder(&uri).cluster(Vec::<String>::new())).await;
    assert!(message.contains("credentials"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_an_error_unless_it_may_come_later() {
    unavailable(RedisSessions::connect(nobody()).await);
    unavailable(RedisSessions::builder(nobody()).cluster([nobody()]).connect().await);
    unavailable(RedisSessions::builder(nobody()).sentinel([nobody()], "mymaster").connect().await);
    for binary in binaries() {
        let port = ports(1)[0];
        let builder = patient(RedisSessions::builder(Address::Port(port).uri()));
        let sessions = builder.lazy(true).connect().await.unwrap();
        let error = sessions.create("ada", json!({})).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let problem = &sessions.doctor().await[0];
        assert_eq!(problem.level, Level::Problem, "{problem}");

        let _server = Process::start_on(&binary, port, &[]);
        while sessions.create("ada", json!({})).await.is_err() {}
        assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_topology_has_its_own_way() {
    if binary().is_none() {
        return;
    }
    let (node, nobody) = (cluster().nodes[0].uri(), nobody());
    let message = config_soon(|| RedisSessions::builder(&node)).await;
    assert!(message.contains("cluster"), "{message}");
    let sentinel = sentinel().sentinels[0].uri();
    let message = config_soon(|| RedisSessions::builder("redis://master").sentinel([&sentinel], "nobody")).await;
    assert!(message.contains("sentinel"), "{message}");
    // One node of it is enough to find the others, and one sentinel of two.
    let node = cluster().nodes[4].uri();
    connected(|| RedisSessions::builder(&nobody).cluster([&nobody, &node])).await;
    connected(|| RedisSessions::builder("redis://master").sentinel([&nobody, &sentinel], "mymaster")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_another_kind_is_refused_and_named() {
    if binary().is_none() {
        return;
    }
    let none = Vec::<String>::new;
    let (server, sentinel) = (Process::start_on(&binary().unwrap(), ports(1)[0], &[]), sentinel().sentinels[0].uri());
    for message in [
        config_soon(|| RedisSessions::builder(&sentinel)).await,
        config_soon_though_lazy(|| RedisSessions::builder(&sentinel)).await,
        config_soon(|| RedisSessions::builder(sentinel.clone() + "/3")).await,
        config_soon(|| RedisSessions::builder(&sentinel).cluster(none())).await,
    ] {
        assert!(message.contains("sentinel"), "{message}");
    }
    let message = config_soon(|| RedisSessions::builder("redis://master").sentinel([server.uri()], "mymaster")).await;
    assert!(message.contains("is not a sentinel"), "{message}");
    let message = config_soon(|| RedisSessions::builder(server.uri()).cluster(none())).await;
    assert!(message.contains("not a node of a Cluster"), "{message}");
    // Also if it does not say what it is.
    let there = &cluster().nodes[0];
    grant(&there.address, "mute", &rights("always", 0));
    let message = config_soon(|| RedisSessions::builder(there.address.uri_as("mute"))).await;
    assert!(message.contains("`.cluster("), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_exist_is_refused_and_named() {
    for binary in binaries() {
        let server = Process::start_on(&binary, ports(1)[0], &[]);
        let builder = || RedisSessions::builder(server.uri() + "/99");
        for message in [config_soon(builder).await, config_soon_though_lazy(builder).await] {
            assert!(message.contains("database"), "{message}");
        }
        // Nor is one that the user may not choose.
        grant(&server.address, "app", &rights("always", 0));
        let builder = || RedisSessions::builder(server.address.uri_as("app") + "/3");
        let message = config_soon(builder).await;
        assert!(message.contains("+select"), "{message}");
        grant(&server.address, "app", &[rights("always", 0), rights("for a database", 0)].concat());
        soon(builder).await.unwrap();
    }
    if binary().is_some() {
        let node = cluster().nodes[0].uri() + "/3";
        let message = config_soon(|| RedisSessions::builder(&node)).await;
        assert!(message.contains("Cluster"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_is_named() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let all = rights("always", 0);
        for missing in all.iter().filter(|right| right.starts_with('+')) {
            let less: Vec<String> = all.iter().filter(|right| *right != missing).cloned().collect();
            grant(&server.address, "app", &less);
            let builder = || RedisSessions::builder(server.address.uri_as("app"));
            let connected = soon(builder).await;
            assert!(connected.is_err(), "without {missing} at {}", binary.display());
            let message = config(connected);
            assert!(message.contains(&format!("lacks {missing}:")), "{missing}: {message}");
            // One that is not there yet is not waited for: it would not help.
            config_soon_though_lazy(builder).await;
        }
        grant(&server.address, "app", &all);
        let builder = || RedisSessions::builder(server.address.uri_as("app"));
        let message = config_soon(|| builder().namespace("not-mine")).await;
        assert!(message.contains("keys of this namespace"), "{message}");
        soon(builder).await.unwrap();
    }
    if binary().is_none() {
        return;
    }
    // In the other modes as well.
    for server in &sentinel().servers {
        grant(&server.address, "less", &rights("always", 0));
    }
    let sentinels = [sentinel().sentinels[0].uri()];
    let builder = || RedisSessions::builder("redis://less:pw@master").sentinel(sentinels.clone(), "mymaster");
    let message = config_soon(builder).await;
    assert!(message.contains("+role"), "{message}");
    for node in &cluster().nodes {
        grant(&node.address, "less", &rights("always", 0));
    }
    let less = cluster().nodes[0].address.uri_as("less");
    let message = config_soon(|| RedisSessions::builder(&less).cluster(Vec::<String>::new())).await;
    assert!(message.contains("+cluster|slots"), "{message}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_refuses_writes_for_now_connects_with_a_warning() {
    for binary in binaries() {
        let server = Process::start_on(&binary, ports(1)[0], &[]);
        // A setting that makes the server refuse, and the value that undoes it.
        let refusals = [
            ("maxmemory", "1", "0", "OOM"),
            ("min-replicas-to-write", "1", "0", "NOREPLICAS"),
            ("save", "3600 1", "", "MISCONF"),
            ("replica-serve-stale-data", "yes", "yes", "READONLY"),
        ];
        for (setting, before, after, code) in refusals {
            server.ask(&["CONFIG", "SET", setting, before]);
            match code {
                "READONLY" => drop(server.ask(&["REPLICAOF", "127.0.0.1", "1"])),
                "MISCONF" => {
                    // It has nowhere to save to.
                    fs::remove_dir_all(&server.folder).unwrap();
                    server.ask(&["BGSAVE"]);
                    until("it could not save", || {
                        server.address.info("persistence", "rdb_last_bgsave_status") == "err"
                    });
                }
                _ => {}
            }
            let (events, guard) = Events::collect();
            let sessions = soon(|| RedisSessions::builder(server.uri())).await.unwrap();
            drop(guard);
            let warned = events.text();
            let warned = warned.lines().find(|line| line.starts_with("WARN")).expect(code);
            assert!(warned.contains(&format!("Redis answered {code}")), "{warned}");
            let problems: Vec<_> =
                sessions.doctor().await.into_iter().filter(|finding| finding.level == Level::Problem).collect();
            assert!(problems.iter().any(|finding| finding.message.contains(code)), "{code}: {problems:?}");
            assert!(sessions.create("ada", json!({})).await.is_err(), "{code}");

            server.ask(&["CONFIG", "SET", setting, after]);
            server.ask(&["REPLICAOF", "NO", "ONE"]);
            // It is not asked to connect again.
            let id = loop {
                if let Ok(id) = sessions.create("ada", json!({})).await {
                    break id;
                }
            };
            assert!(sessions.get(&id).await.unwrap().is_some());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_tries_every_server_of_a_cluster() {
    if binary().is_none() {
        return;
    }
    let cluster = cluster();
    let all = [rights("always", 0), rights("in a Cluster", 0)].concat();
    for node in &cluster.nodes {
        grant(&node.address, "patient", &all);
    }
    let sessions = connected(|| cluster.builder_as("patient")).await;
    let problems = async || {
        let findings = sessions.doctor().await;
        findings.into_iter().filter(|finding| finding.level == Level::Problem).collect::<Vec<_>>()
    };
    assert_eq!(problems().await, []);
    for master in cluster.masters() {
        master.ask(&["ACL", "SETUSER", "patient", "-hset"]);
        let found = problems().await;
        assert!(found.len() == 1 && found[0].subject == "rights" && found[0].message.contains("+hset"), "{found:?}");
        master.ask(&["ACL", "SETUSER", "patient", "+hset"]);
    }
}

async fn the_documented_rights_are_enough(on: Topology) {
    let place = Place::new(on).unwrap();
    for user in ["lone-app", "lone-operator"] {
        let sessions = connected(|| place.builder(user)).await;
        let id = sessions.create("ada", json!({})).await.unwrap();
        sessions.update(&id, json!({"a": 1})).await.unwrap();
        assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
        assert_eq!(sessions.backend().count().await.unwrap(), Count::new(1, 0));
        sessions.backend().mark(owner("ada")).await.unwrap();
        let terms = Terms { limit: 1.into(), leaves: Some((anonymous("one"), 1)), ..Terms::default() };
        for sid in ["one", "two"] {
            let made = sessions.backend().create(record(of(owner("ada"), sid), 1, "x"), terms.clone()).await;
            assert!(matches!(made, Ok(Created::Done { .. })), "{made:?}");
        }
        sessions.backend().clears(owner("ada"), None).await.unwrap();
        assert_eq!(sessions.clear("ada").await.unwrap(), 1);
        let findings = sessions.doctor().await;
        assert!(findings.iter().all(|finding| finding.level != Level::Problem), "{findings:?}");
        // What else was tried is only what one may go without.
        let optional = match user {
            "lone-app" => &["client|setinfo", "ping", "info", "config|get", "script|load"][..],
            _ => &["client|setinfo", "ping"],
        };
        for master in place.masters() {
            for entry in master.ask(&["ACL", "LOG", "1000"]).list() {
                let fields: Vec<String> = entry.list().iter().map(Reply::text).collect();
                let field = |name| fields.iter().position(|field| field == name).map(|at| fields[at + 1].clone());
                let (who, what) = (field("username").unwrap(), field("object").unwrap());
                // Subcommands are told apart since 7.0.
                let is_optional = optional.iter().any(|right| *right == what || right.split('|').next() == Some(&what));
                assert!(who != user || is_optional, "{fields:?}");
            }
        }
    }
}

async fn nothing_is_left_of_the_self_test(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    sessions.doctor().await;
    assert_eq!(place.keys(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_closed_stays_closed() {
    if binary().is_none() {
        return;
    }
    let sessions = connected(|| RedisSessions::builder(server().uri()).namespace("closed")).await;
    let id = sessions.create("ada", json!({})).await.unwrap();
    sessions.close().await.unwrap();
    assert_eq!(sessions.get(&id).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(sessions.backend().load(anonymous("one")).await.is_err());
}

async fn a_connection_of_the_application_will_do(on: Topology) {
    let place = Place::new(on).unwrap();
    let id = of(owner("ada"), "one");
    let uris = match on {
        Topology::Cluster => cluster().nodes.iter().map(Process::uri).collect(),
        _ => vec![place.masters()[0].uri() + "?protocol=resp3"],
    };
    let builder = || RedisSessions::builder("").namespace(&place.namespace);
    let sessions = connected_over(on, &uris, builder).await;
    assert!(sessions.backend().creates(record(id, 1, "x")).await.unwrap());
    assert!(sessions.backend().load(id).await.unwrap().is_some());
    assert!(sessions.backend().updates(9, record(id, 2, "y")).await.is_ok());
    assert_eq!(sessions.backend().list(owner("ada")).await.unwrap().len(), 1);
    assert_eq!(sessions.backend().clears(owner("ada"), None).await.unwrap(), 1);
    assert!(sessions.doctor().await.len() > 2);
}

async fn the_doctor_knows_the_server(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = connected(|| place.builder("operator")).await;
    let findings = sessions.doctor().await;
    let about = |subject: &str| findings.iter().any(|finding| finding.subject == subject);
    for subject in ["version", "memory", "persistence", "replicas", "latency", "clock"] {
        assert!(about(subject), "{subject} in {findings:?}");
    }
    // None of them has a limit to its memory.
    let memory = findings.iter().find(|finding| finding.subject == "memory").unwrap();
    assert_eq!(memory.level, Level::Advice);
    assert!(memory.to_string().starts_with("advice: memory: "));
    assert_eq!(about("cluster"), on == Topology::Cluster);
    assert!(findings.iter().all(|finding| finding.level != Level::Problem), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_sees_what_is_wrong() {
    for binary in binaries() {
        let server = Process::start(&binary, &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        let says = async |subject: &str, level: Level| {
            let findings = sessions.doctor().await;
            assert!(findings.iter().any(|found| found.subject == subject && found.level == level), "{findings:?}");
        };
        says("memory", Level::Advice).await;
        server.ask(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
        says("memory", Level::Fine).await;
        says("persistence", Level::Advice).await;
        server.ask(&["CONFIG", "SET", "appendonly", "yes"]);
        says("persistence", Level::Fine).await;
        server.ask(&["ACL", "SETUSER", "default", "-config"]);
        says("settings", Level::Fine).await;
        server.ask(&["ACL", "SETUSER", "default", "-info"]);
        says("server", Level::Fine).await;
        server.ask(&["ACL", "SETUSER", "default", "+info"]);
        server.ask(&["REPLICAOF", "127.0.0.1", "1"]);
        says("role", Level::Problem).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_to_a_server_that_is_trusted() {
    let Some(binary) = binary() else { return };
    let files = Process::start(&binary, &[]);
    let Some((certificate, key)) = self::certificate(&files.folder, "server", "DNS:localhost") else { return };
    let [port, plain] = ports(2)[..] else { panic!("two ports") };
    let server = with_tls(&binary, plain, port, &certificate, &key, &[]);

    // Neither of these is a panic, and each names its cause.
    let message = config_soon(|| RedisSessions::builder(format!("rediss://localhost:{port}"))).await;
    assert!(message.contains("not trusted"), "{message}");
    let message = config_soon(|| RedisSessions::builder(format!("rediss://localhost:{plain}"))).await;
    assert!(message.contains("use redis://"), "{message}");
    let wrong = format!("redis://127.0.0.1:{port}");
    let mistakes: [&dyn Fn() -> Builder<RedisServer>; 3] =
        [&|| RedisSessions::builder(&wrong), &|| RedisSessions::builder(&wrong).cluster(Vec::<String>::new()), &|| {
            RedisSessions::builder("redis://master").sentinel([&wrong], "mymaster")
        }];
    for mistake in mistakes {
        let message = config_soon(mistake).await;
        assert!(message.contains("use rediss://"), "{message}");
    }
    let insecure = format!("rediss://localhost:{port}/#insecure");
    config_soon(|| RedisSessions::builder(&insecure)).await;

    // A Cluster names its nodes by their addresses.
    let Some((other, key)) = self::certificate(&files.folder, "node", "DNS:localhost,IP:127.0.0.1") else { return };
    let [node_port, plain] = ports(2)[..] else { panic!("two ports") };
    let more = ["--tls-cluster", "yes", "--tls-ca-cert-file", &other, "--cluster-enabled", "yes"];
    let node = with_tls(&binary, plain, node_port, &other, &key, &more);
    let slots: Vec<String> = (0..16384).map(|slot| slot.to_string()).collect();
    let command: Vec<&str> = ["CLUSTER", "ADDSLOTS"].into_iter().chain(slots.iter().map(String::as_str)).collect();
    assert!(!node.ask(&command).is_error());
    until("the cluster is up", || node.address.info_of_cluster("cluster_state") == "ok");
    let cluster = format!("rediss://localhost:{node_port}");
    let message = config_soon(|| RedisSessions::builder(&cluster).cluster(Vec::<String>::new())).await;
    assert!(message.contains("not trusted"), "{message}");

    // Trust comes from the environment, and belongs to a process.
    let bundle = files.folder.join("bundle.crt");
    fs::write(&bundle, fs::read_to_string(&certificate).unwrap() + &fs::read_to_string(&other).unwrap()).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["redis::connect::speaks_tls", "--exact", "--nocapture"])
        .env("SSL_CERT_FILE", &bundle)
        .env("TLS_PORT", port.to_string())
        .env("TLS_CLUSTER", &cluster)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&child.stderr));
    assert_eq!(server.ask(&["KEYS", "*"]).list().len(), 1);
}

/// Run by the test above, in a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speaks_tls() {
    let (Ok(port), Ok(cluster)) = (std::env::var("TLS_PORT"), std::env::var("TLS_CLUSTER")) else { return };
    let message = config_soon(|| RedisSessions::builder(format!("rediss://127.0.0.1:{port}"))).await;
    assert!(message.contains("another host"), "{message}");
    let server = || RedisSessions::builder(format!("rediss://localhost:{port}"));
    let cluster = || RedisSessions::builder(&cluster).cluster(Vec::<String>::new());
    for connected in [soon(server).await, soon(cluster).await, soon(server).await] {
        let sessions = connected.unwrap();
        let id = sessions.create("ada", json!({"a": 1})).await.unwrap();
        assert!(sessions.get(&id).await.unwrap().is_some());
    }
    // Which provider the process uses is still the application's choice, and is then used here as well.
    rustls::crypto::ring::default_provider().install_default().expect("none is installed");
    soon(server).await.unwrap();
}

fn with_tls(binary: &Path, plain: u16, port: u16, certificate: &str, key: &str, more: &[&str]) -> Process {
    let port = port.to_string();
    let mut args = vec!["--tls-port", &port, "--tls-cert-file", certificate, "--tls-key-file", key];
    args.extend(["--tls-auth-clients", "no"]);
    args.extend(more);
    Process::start_on(binary, plain, &args)
}

/// A self-signed certificate for these names.
fn certificate(folder: &Path, file: &str, names: &str) -> Option<(String, String)> {
    let (certificate, key) = (folder.join(format!("{file}.crt")), folder.join(format!("{file}.key")));
    let config = folder.join(format!("{file}.cnf"));
    let text = format!(
        "[req]\ndistinguished_name=d\nx509_extensions=x\nprompt=no\n[d]\nCN={file}\n\
         [x]\nsubjectAltName={names}\nbasicConstraints=critical,CA:FALSE\n"
    );
    fs::write(&config, text).unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .arg("-config")
        .arg(&config)
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    if made.is_ok_and(|made| made.status.success()) {
        return Some((certificate.display().to_string(), key.display().to_string()));
    }
    assert!(std::env::var_os("CI").is_none(), "there is no openssl to make a certificate with");
    eprintln!("skipped: there is no openssl to make a certificate with");
    None
}
