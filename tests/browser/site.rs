//! A site that counts visits, with any `SameSite`, and pages of another site that link to it.

use std::{convert::Infallible, net, thread};

use http::{HeaderValue, Method, Request, Response};
use jam_session::{Error, MemorySessions, SameSite, Session, SessionLayer};
use tokio::{
    io::{self, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    runtime::Builder,
};
use tower::{Layer, ServiceExt, service_fn};

pub struct Site {
    port: u16,
}

impl Site {
    /// It serves for as long as the process lives.
    pub fn with(same_site: SameSite) -> Self {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        // Of a site that a page embeds, Chromium keeps no other cookies than partitioned ones.
        let is_embedded = same_site == SameSite::None;
        let layer = SessionLayer::new(MemorySessions::new()).same_site(same_site).partitioned(is_embedded);
        thread::spawn(move || {
            Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((browser, _)) = listener.accept().await {
                    tokio::spawn(serve(browser, layer.clone(), port));
                }
            });
        });
        Self { port }
    }

    pub fn at(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The same server under a name that browsers take for another site.
    pub fn elsewhere(&self) -> String {
        format!("http://localhost:{}/elsewhere", self.port)
    }
}

/// Answers one request.
async fn serve(mut browser: TcpStream, layer: SessionLayer, port: u16) -> io::Result<()> {
    let mut reader = BufReader::new(&mut browser);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut head).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let [method, path, ..] = lines.next().unwrap().split(' ').collect::<Vec<_>>()[..] else { return Ok(()) };
    let mut request = Request::builder().method(method).uri(path);
    let mut length = 0;
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value);
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().unwrap();
        }
    }
    reader.read_exact(&mut vec![0; length]).await?;

    let service = layer.layer(service_fn(async |request| Ok::<_, Infallible>(page(request, port).await.unwrap())));
    let response = service.oneshot(request.body(()).unwrap()).await.unwrap();
    let mut answer = format!("HTTP/1.1 {}\r\n", response.status());
    for (name, value) in response.headers() {
        answer += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    answer += &format!("content-length: {}\r\nconnection: close\r\n\r\n{}", response.body().len(), response.body());
    browser.write_all(answer.as_bytes()).await
}

async fn page(request: Request<()>, port: u16) -> Result<Response<String>, Error> {
    let session = request.extensions().get::<Session>().unwrap();
    session.load().await?;
    let text = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::POST, "/") => {
            session.modify("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?;
            let visits: Option<u64> = session.get("visits")?;
            format!("Visit {} of {}.", visits.unwrap_or(0), session.key().as_deref().unwrap_or("a visitor"))
        }
        (&Method::GET, "/login") => {
            session.bind("ada");
            "Hello, ada.".to_owned()
        }
        (&Method::GET, "/elsewhere") => format!(
            "<a href='http://127.0.0.1:{port}/'>Link</a>
             <form method=post action='http://127.0.0.1:{port}/'><button>Form</button></form>"
        ),
        // Such as an icon.
        _ => String::new(),
    };
    let html = format!("<!doctype html><html lang=en><title>A page</title><body>{text}");
    let mut response = Response::new(html);
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/html"));
    // Scripts of other sites may read what it says.
    if let Some(origin) = request.headers().get("origin") {
        response.headers_mut().insert("access-control-allow-origin", origin.clone());
        response.headers_mut().insert("access-control-allow-credentials", HeaderValue::from_static("true"));
    }
    Ok(response)
}
