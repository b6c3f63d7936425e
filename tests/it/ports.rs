//! Free loopback ports, for servers that need a port number.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::Mutex,
};

/// So many free ports, with one more 10 000 above each that is free as well, for the bus of a Cluster. None is given twice.
///
/// A port that was free a moment ago may belong to a connection by now, if it is one of those that the system gives to whoever
/// asks for any. These are below them. They come in blocks, and a process that listens on the first port of a block has the
/// rest of it to itself: other tests at the same time keep to other blocks.
pub fn ports(count: usize) -> Vec<u16> {
    static BLOCKS: Mutex<Blocks> = Mutex::new(Blocks { held: Vec::new(), rest: Vec::new() });
    let mut blocks = BLOCKS.lock().unwrap();
    (0..count).map(|_| blocks.next()).collect()
}

struct Blocks {
    /// As long as this process lives.
    held: Vec<TcpListener>,
    rest: Vec<u16>,
}

impl Blocks {
    fn next(&mut self) -> u16 {
        loop {
            match self.rest.pop() {
                // A server that has nothing to do with tests may be there.
                Some(port) if listen(port).is_some() && listen(port + 10_000).is_some() => return port,
                Some(_) => {}
                None => self.take_block(),
            }
        }
    }

    fn take_block(&mut self) {
        // Processes that start at the same time begin at different ends.
        let first = std::process::id() as u16 % BLOCKS;
        let blocks = (0..BLOCKS).map(|at| 10_000 + (first + at) % BLOCKS * SIZE);
        let taken = blocks.into_iter().find_map(|block| Some((block, listen(block)?)));
        let (block, mark) = taken.expect("there is a block of ports that nobody has");
        self.held.push(mark);
        self.rest.extend((block + 1..block + SIZE).rev());
    }
}

fn listen(port: u16) -> Option<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
}

const BLOCKS: u16 = 200;
const SIZE: u16 = 50;
