//! Counts the allocations of a request. The arguments are the numbers of the stack and of the scenario.

use crate::stacks::{COUNTED, Client, call};

mod stacks;

fn main() {
    let mut numbers = std::env::args().skip(1).map(|arg| arg.parse().expect("a number"));
    let (stack, scenario) = (numbers.next().expect("a stack"), numbers.next().expect("a scenario"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    let mut client = Client::new(stack, scenario);
    // The first requests fill caches and pools.
    for _ in 0..COUNTED {
        let request = client.request();
        call(&mut client.router, request);
    }
    let counts = (0..COUNTED).map(|_| {
        let request = client.request();
        allocation_counter::measure(|| drop(call(&mut client.router, request))).count_total
    });
    // Occasionally a buffer grows, but not in most requests.
    let mut counts: Vec<u64> = counts.collect();
    counts.sort_unstable();
    println!("{}", counts[COUNTED / 2]);
}
