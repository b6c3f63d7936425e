//! Redis in its three topologies. Each is started once, shared by the tests that do not break it, and used with exactly the
//! rights that the docs list.

use std::{
    path::{Path, PathBuf},
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use jam_session::{
    Builder, Error, ErrorKind, RedisServer, RedisSessions,
    redis::{AsyncConnectionConfig, Client, cluster::ClusterClientBuilder},
};

use super::{
    process::{Process, until},
    wire::{Address, Reply},
};
use crate::{ports::ports, store::PATIENCE};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Topology {
    Server,
    /// A server of another binary: the n-th of `SESSION_TEST_REDIS_SERVERS`.
    Other(usize),
    Sentinel,
    Cluster,
}

/// Sessions that share a server with others, under a namespace of their own.
pub struct Place {
    pub topology: Topology,
    pub namespace: String,
}

/// One master, one replica, and sentinels.
pub struct WithSentinels {
    pub servers: [Process; 2],
    pub sentinels: Vec<Process>,
}

/// Three masters, and a replica for each.
pub struct OfCluster {
    pub nodes: Vec<Process>,
}

/// Runs each of these tests on the three topologies, and on every further binary.
#[macro_export]
macro_rules! on_every_redis {
    ($($test:ident),* $(,)?) => {
        $crate::on_every_redis!(@ server Server: $($test),*);
        $crate::on_every_redis!(@ sentinel Sentinel: $($test),*);
        $crate::on_every_redis!(@ cluster Cluster: $($test),*);
        mod others {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                for at in 0..$crate::redis::harness::others().len() {
                    super::$test($crate::redis::harness::Topology::Other(at)).await;
                }
            })*
        }
    };
    (@ $module:ident $topology:ident: $($test:ident),*) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if $crate::redis::harness::binary().is_some() {
                    super::$test($crate::redis::harness::Topology::$topology).await;
                }
            })*
        }
    };
}

impl Place {
    /// A place on the shared servers of that topology. `None` if there is no server to start.
    pub fn new(topology: Topology) -> Option<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        binary()?;
        Some(Self { topology, namespace: format!("test-{}", NEXT.fetch_add(1, SeqCst)) })
    }

    /// Sessions at this place, over connections of their own: those of one process.
    pub async fn sessions(&self) -> RedisSessions {
        self.sessions_with(|builder| builder).await
    }

    pub async fn sessions_with(&self, options: impl Fn(Builder<RedisServer>) -> Builder<RedisServer>) -> RedisSessions {
        connected(|| options(self.builder("app"))).await
    }

    /// As `app`, or as `operator`, who may also do what only the doctor needs.
    pub fn builder(&self, user: &str) -> Builder<RedisServer> {
        let builder = match self.topology {
            Topology::Server => RedisSessions::builder(server().address.uri_as(user)),
            Topology::Other(at) => RedisSessions::builder(others()[at].address.uri_as(user)),
            Topology::Sentinel => sentinel().builder_as(user),
            Topology::Cluster => cluster().builder_as(user),
        };
        patient(builder).namespace(&self.namespace)
    }

    /// The servers that hold keys.
    pub fn masters(&self) -> Vec<Address> {
        match self.topology {
            Topology::Server => vec![server().address.clone()],
            Topology::Other(at) => vec![others()[at].address.clone()],
            Topology::Sentinel => vec![sentinel().master()],
            Topology::Cluster => cluster().masters(),
        }
    }

    /// All keys of this place, and where they are.
    pub fn keys(&self) -> Vec<(Address, String)> {
        let mut keys = Vec::new();
        for master in self.masters() {
            let found = master.ask(&["KEYS", &format!("{}:*", self.namespace)]).list();
            keys.extend(found.into_iter().map(|key| (master.clone(), key.text())));
        }
        keys
    }

    /// Lets that much time pass for everything that is stored here.
    pub fn age(&self, by: Duration) {
        let by = i64::try_from(by.as_millis()).unwrap();
        for (server, key) in self.keys() {
            let left = server.ask(&["PTTL", &key]).number();
            if left == -2 {
                continue;
            }
            assert!(left >= 0, "{key} has no time to live");
            if left <= by {
                server.ask(&["DEL", &key]);
                continue;
            }
            server.ask(&["EVAL", AGE, "1", &key, &by.to_string()]);
            server.ask(&["PEXPIRE", &key, &(left - by).to_string()]);
        }
    }
}

/// Moves all times in a value back by so many milliseconds: when a record ends, and when its owner was cleared last.
pub const AGE: &str = "
    local function aged(field, value)
      if field == '' then return string.format('%016.0f', string.sub(value, 1, 16) - ARGV[1] * 1000) .. string.sub(value, 17) end
      local ends = tonumber(string.sub(value, 4, 16))
      if not ends then return value end
      return string.sub(value, 1, 3) .. string.format('%013.0f', ends - ARGV[1]) .. string.sub(value, 17)
    end
    if redis.call('TYPE', KEYS[1]).ok == 'string' then
      redis.call('SET', KEYS[1], aged('anonymous', redis.call('GET', KEYS[1])), 'KEEPTTL')
      return
    end
    local all = redis.call('HGETALL', KEYS[1])
    for at = 1, #all, 2 do
      if string.sub(all[at], -1) ~= ':' then redis.call('HSET', KEYS[1], all[at], aged(all[at], all[at + 1])) end
    end";

/// What the docs list as needed: the `nth` group of rights in the line that begins like this.
pub fn rights(line: &str, nth: usize) -> Vec<String> {
    let docs = include_str!("../../../src/stores/redis/mod.rs");
    let start = format!("//! * {line}");
    let line = docs.lines().find(|text| text.starts_with(&start)).unwrap();
    let group = line.split('`').skip(1).step_by(2).nth(nth).unwrap();
    group.split(' ').map(str::to_owned).collect()
}

/// Makes a user with exactly these rights, on the namespaces of the tests.
pub fn grant(server: &Address, user: &str, rights: &[String]) {
    let mut command = vec!["ACL", "SETUSER", user, "reset", "on", ">pw"];
    for right in rights {
        match right.strip_prefix("~sessions") {
            Some(rest) => assert_eq!(rest, ":*"),
            None => command.push(right),
        }
    }
    command.extend(["~sessions:*", "~test-*:*"]);
    let answer = server.ask(&command);
    assert!(!answer.is_error(), "{command:?}: {answer:?}");
}

/// With what sessions need, in the mode of the server.
const APPS: [&str; 2] = ["app", "lone-app"];
/// With what the doctor can use, too.
const OPERATORS: [&str; 2] = ["operator", "lone-operator"];

/// Makes the users. One test alone uses those that are called so: it reads what they were denied.
fn make_users(server: &Address, mode: &[String]) {
    let app = [rights("always", 0), mode.to_vec()].concat();
    let operator = [app.clone(), rights("for all that", 1)].concat();
    for (users, rights) in [(APPS, app), (OPERATORS, operator)] {
        users.iter().for_each(|user| grant(server, user, &rights));
    }
}

/// Two cores and many tests: nothing here waits for a deadline to pass, unless it says so.
pub fn patient(builder: Builder<RedisServer>) -> Builder<RedisServer> {
    builder.deadline(Duration::from_secs(4)).request_time(PATIENCE)
}

/// Connects, and tries again for as long as nothing is reached: a machine that stands still for a moment may be too slow.
pub async fn soon(builder: impl Fn() -> Builder<RedisServer>) -> Result<RedisSessions, Error> {
    let begun = Instant::now();
    loop {
        match patient(builder()).connect().await {
            Err(error) if error.kind() == ErrorKind::Unavailable && begun.elapsed() < PATIENCE => {}
            result => return result,
        }
    }
}

pub async fn connected(builder: impl Fn() -> Builder<RedisServer>) -> RedisSessions {
    soon(builder).await.unwrap()
}

/// The same over a connection that an application has made, to one server or to a Cluster.
pub async fn connected_over(
    on: Topology,
    uris: &[String],
    builder: impl Fn() -> Builder<RedisServer>,
) -> RedisSessions {
    if on == Topology::Cluster {
        let client = ClusterClientBuilder::new(uris.to_vec()).connection_timeout(PATIENCE).response_timeout(PATIENCE);
        let connection = client.build().unwrap().get_async_connection().await.unwrap();
        return connected(|| builder().connection(connection.clone())).await;
    }
    let time = Some(PATIENCE);
    let config = AsyncConnectionConfig::new().set_connection_timeout(time).set_response_timeout(time);
    let client = Client::open(&uris[0][..]).unwrap();
    let connection = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
    connected(|| builder().connection(connection.clone())).await
}

impl WithSentinels {
    pub fn start(sentinels: usize) -> Self {
        let binary = binary().unwrap();
        let ports = ports(2 + sentinels);
        let master = Process::start_on(&binary, ports[0], &[]);
        let replica = Process::start_on(&binary, ports[1], &["--replicaof", "127.0.0.1", &ports[0].to_string()]);
        // A sentinel asks the master for its replicas at once, and then not for ten seconds.
        until("the replica follows", || master.address.info("replication", "slave0").contains("state=online"));
        let quorum = sentinels / 2 + 1;
        for server in [&master, &replica] {
            make_users(&server.address, &rights("behind Sentinel", 0));
        }
        let sentinels: Vec<Process> =
            ports[2..].iter().map(|port| Process::start_sentinel(&binary, *port, ports[0], quorum)).collect();
        for sentinel in &sentinels {
            for user in APPS.into_iter().chain(OPERATORS) {
                grant(&sentinel.address, user, &rights("behind Sentinel", 1));
            }
            let knows = |field: &str| {
                let master = sentinel.ask(&["SENTINEL", "MASTER", "mymaster"]);
                let Reply::List(fields) = master else { return String::new() };
                fields.chunks(2).find(|pair| pair[0].text() == field).map_or(String::new(), |pair| pair[1].text())
            };
            until("the sentinel knows the replica", || knows("num-slaves") == "1");
            until("the sentinel knows the others", || {
                knows("num-other-sentinels") == (sentinels.len() - 1).to_string()
            });
        }
        Self { servers: [master, replica], sentinels }
    }

    pub fn builder(&self) -> Builder<RedisServer> {
        self.builder_as("app")
    }

    pub fn builder_as(&self, user: &str) -> Builder<RedisServer> {
        let sentinels = self.sentinels.iter().map(|sentinel| sentinel.address.uri_as(user));
        patient(RedisSessions::builder(format!("redis://{user}:pw@master"))).sentinel(sentinels, "mymaster")
    }

    /// Whom the first sentinel names.
    pub fn master(&self) -> Address {
        let answer = self.sentinels[0].ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]).list();
        Address::Port(answer[1].text().parse().unwrap())
    }

    /// A master that does not answer is dead from now on, and not only slow. A failover that takes long is given up, and soon
    /// begun again.
    pub fn lose_patience(&self) {
        for sentinel in &self.sentinels {
            for (option, ms) in [("failover-timeout", "2000"), ("down-after-milliseconds", "500")] {
                let told = sentinel.ask(&["SENTINEL", "SET", "mymaster", option, ms]);
                assert!(!told.is_error(), "{told:?}");
            }
        }
    }

    /// Whether there is another master than that one. Until then it asks for one: sentinels give up a failover that takes them
    /// too long, and refuse another while one is under way.
    pub fn has_left(&self, old: &Address) -> bool {
        let has_left = self.master().port() != old.port();
        if !has_left {
            self.sentinels[0].ask(&["SENTINEL", "FAILOVER", "mymaster"]);
        }
        has_left
    }

    pub fn process(&self, address: &Address) -> &Process {
        self.servers.iter().find(|server| server.address.port() == address.port()).unwrap()
    }
}

impl OfCluster {
    pub fn start(options: &[&str]) -> Self {
        let binary = binary().unwrap();
        let mut args = vec!["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
        // No node takes over before it may: that another one is slow, on a busy machine, does not mean that it is dead.
        args.extend(["--cluster-replica-no-failover", "yes"]);
        args.extend(["--cluster-replica-validity-factor", "0"]);
        // A replica is shown to clients once it has heard from its master, which has nothing to tell but this.
        args.extend(["--repl-ping-replica-period", "1"]);
        args.extend(options);
        let ports = ports(6);
        let nodes: Vec<Process> = ports.iter().map(|port| Process::start_on(&binary, *port, &args)).collect();
        for (at, node) in nodes.iter().enumerate() {
            node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
            if at < 3 {
                let slots: Vec<String> = (16384 * at / 3..16384 * (at + 1) / 3).map(|slot| slot.to_string()).collect();
                let mut command = vec!["CLUSTER", "ADDSLOTS"];
                command.extend(slots.iter().map(String::as_str));
                assert!(!node.ask(&command).is_error());
            }
            if at > 0 {
                nodes[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &ports[at].to_string()]);
            }
        }
        for node in &nodes {
            make_users(&node.address, &rights("in a Cluster", 0));
            until("all nodes have met", || node.address.info_of_cluster("cluster_known_nodes") == "6");
        }
        for at in 3..6 {
            let master = nodes[at - 3].ask(&["CLUSTER", "MYID"]).text();
            until("the replica knows its master", || !nodes[at].ask(&["CLUSTER", "REPLICATE", &master]).is_error());
        }
        for node in &nodes {
            until("the cluster is up", || node.address.info_of_cluster("cluster_state") == "ok");
        }
        for replica in &nodes[3..] {
            until("the replica follows", || replica.address.info("replication", "master_link_status") == "up");
        }
        // Every node tells clients of every replica.
        for node in &nodes {
            until("the slots have replicas", || match node.ask(&["CLUSTER", "SLOTS"]) {
                Reply::List(ranges) => ranges.len() >= 3 && ranges.into_iter().all(|range| range.list().len() == 4),
                _ => false,
            });
        }
        let cluster = Self { nodes };
        cluster.be_patient(&[0, 1, 2, 3, 4, 5]);
        for node in &cluster.nodes {
            until("the cluster is still up", || node.address.info_of_cluster("cluster_state") == "ok");
        }
        cluster
    }

    /// For these nodes one that does not answer is slow, and not dead. None of them takes another for dead.
    pub fn be_patient(&self, nodes: &[usize]) {
        self.set(nodes, "cluster-replica-no-failover", "yes");
        until("no node takes another for dead", || {
            self.set(nodes, "cluster-node-timeout", "600000");
            let all_live = || nodes.iter().all(|at| self.takes_none_for_dead(*at, nodes));
            if all_live() {
                return true;
            }
            // One that was too slow is dead to them for twice the time that it has to answer in.
            self.lose_patience(nodes);
            until("they have heard of each other", all_live);
            false
        });
    }

    fn takes_none_for_dead(&self, at: usize, others: &[usize]) -> bool {
        let all = self.nodes[at].ask(&["CLUSTER", "NODES"]).text();
        let is_alive = |at: &usize| {
            let address = format!("127.0.0.1:{}@", self.nodes[*at].address.port());
            let flags = all.lines().find(|line| line.contains(&address)).and_then(|line| line.split(' ').nth(2));
            flags.is_some_and(|flags| !flags.split(',').any(|flag| flag == "fail" || flag == "fail?"))
        };
        others.iter().all(is_alive)
    }

    /// For these nodes one that does not answer is dead from now on.
    pub fn lose_patience(&self, nodes: &[usize]) {
        self.set(nodes, "cluster-node-timeout", "1000");
    }

    /// And they take its place.
    pub fn take_over(&self, nodes: &[usize]) {
        self.set(nodes, "cluster-replica-no-failover", "no");
        self.lose_patience(nodes);
    }

    fn set(&self, nodes: &[usize], name: &str, value: &str) {
        for at in nodes {
            let set = self.nodes[*at].ask(&["CONFIG", "SET", name, value]);
            assert!(!set.is_error(), "{set:?}");
        }
    }

    pub fn builder(&self) -> Builder<RedisServer> {
        self.builder_as("app")
    }

    pub fn builder_as(&self, user: &str) -> Builder<RedisServer> {
        let mut nodes = self.nodes.iter().map(|node| node.address.uri_as(user));
        patient(RedisSessions::builder(nodes.next().unwrap())).cluster(nodes)
    }

    pub fn masters(&self) -> Vec<Address> {
        let nodes = self.nodes.iter().map(|node| node.address.clone());
        nodes.filter(|node| node.info("replication", "role") == "master").collect()
    }
}

impl Address {
    pub fn info_of_cluster(&self, field: &str) -> String {
        let text = self.ask(&["CLUSTER", "INFO"]).text();
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().trim_end().to_owned()
    }
}

/// The shared server.
pub fn server() -> &'static Process {
    static SERVER: LazyLock<Process> = LazyLock::new(|| start(&binary().unwrap()));
    &SERVER
}

pub fn sentinel() -> &'static WithSentinels {
    static SENTINEL: LazyLock<WithSentinels> = LazyLock::new(|| WithSentinels::start(1));
    &SENTINEL
}

pub fn cluster() -> &'static OfCluster {
    static CLUSTER: LazyLock<OfCluster> = LazyLock::new(|| OfCluster::start(&[]));
    &CLUSTER
}

/// A server for each binary in `SESSION_TEST_REDIS_SERVERS`, paths with colons or commas between them.
pub fn others() -> &'static [Process] {
    static OTHERS: OnceLock<Vec<Process>> = OnceLock::new();
    OTHERS.get_or_init(|| other_binaries().iter().map(|binary| start(binary)).collect())
}

fn start(binary: &Path) -> Process {
    let server = Process::start(binary, &[]);
    make_users(&server.address, &[]);
    server
}

/// The binaries that tests of a single server start: the one that is installed, and the others.
pub fn binaries() -> Vec<PathBuf> {
    binary().into_iter().chain(other_binaries()).collect()
}

fn other_binaries() -> Vec<PathBuf> {
    static SAID: OnceLock<()> = OnceLock::new();
    let paths = std::env::var("SESSION_TEST_REDIS_SERVERS").unwrap_or_default();
    let paths: Vec<PathBuf> = paths.split([':', ',']).filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    if paths.is_empty() {
        SAID.get_or_init(|| eprintln!("skipped: other servers, for SESSION_TEST_REDIS_SERVERS names none"));
    }
    for path in &paths {
        assert!(path.is_file(), "SESSION_TEST_REDIS_SERVERS names {}, which is not there", path.display());
    }
    paths
}

/// `redis-server`, or Valkey's. Without either the tests say so and pass, but fail in CI.
pub fn binary() -> Option<PathBuf> {
    static BINARY: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let names = ["redis-server", "valkey-server"];
        names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|file| file.is_file())
    });
    if BINARY.is_none() {
        assert!(std::env::var_os("CI").is_none(), "there is no redis-server to test with");
        eprintln!("skipped: there is no redis-server to test with");
    }
    BINARY.clone()
}
