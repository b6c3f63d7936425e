//! The smallest complete app: it counts your visits. `cargo run --example counter`, then open http://localhost:3000

use axum::{Router, routing::get};
use jam_session::{Error, MemorySessions, Session, SessionLayer};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let app = Router::new().route("/", get(home)).layer(SessionLayer::new(MemorySessions::new()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await
}

async fn home(session: Session) -> Result<String, Error> {
    let visits = session.get::<u64>("visits")?.unwrap_or(0) + 1;
    session.insert("visits", visits)?;
    Ok(format!("visit number {visits}\n"))
}
