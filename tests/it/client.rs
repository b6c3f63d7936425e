//! A minimal browser: it keeps cookies, and sends requests whose handler is a closure.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Request, StatusCode, header};
use jam_session::{Error, Session, SessionLayer};
use tower::{Layer, ServiceExt, service_fn};

/// One browser. A clone is another tab of it.
#[derive(Clone)]
pub struct Client {
    layer: SessionLayer,
    jar: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Client {
    pub fn new(layer: &SessionLayer) -> Self {
        Self { layer: layer.clone(), jar: Arc::default() }
    }

    /// The same browser at another server.
    pub fn at(&self, layer: &SessionLayer) -> Self {
        Self { layer: layer.clone(), jar: Arc::clone(&self.jar) }
    }

    /// Another browser that stole the cookies.
    pub fn thief(&self) -> Self {
        Self { layer: self.layer.clone(), jar: Arc::new(Mutex::new(self.jar.lock().unwrap().clone())) }
    }

    /// The session's cookie: name and value; the user's if there are both.
    pub fn cookie(&self) -> Option<(String, String)> {
        let jar = self.jar.lock().unwrap();
        jar.iter().next().map(|(name, value)| (name.clone(), value.clone()))
    }

    pub fn id(&self) -> Option<String> {
        self.cookie().map(|(_, value)| value)
    }

    /// Under the name of its kind, as far as that can be seen: an ID that is encrypted goes under both.
    pub fn set_id(&self, value: &str) {
        let dots = value.matches('.').count();
        for (name, _) in [("__Host-id", 1), ("__Host-id-visitor", 2)].iter().filter(|(_, other)| dots != *other) {
            self.jar.lock().unwrap().insert((*name).to_owned(), value.to_owned());
        }
    }

    /// A request to a handler that takes the session.
    pub async fn visit<F, T>(&self, handler: impl FnOnce(Session) -> F) -> Answer
    where
        F: Future<Output = Result<T, Error>>,
        T: IntoResponse,
    {
        self.request(Request::default(), async |session: Session| {
            if let Err(error) = session.load().await {
                return error.into_response();
            }
            handler(session).await.into_response()
        })
        .await
    }

    /// A request to a handler that writes or reads without waiting for anything.
    pub async fn does<T: IntoResponse>(&self, handler: impl FnOnce(&Session) -> Result<T, Error>) -> Answer {
        self.visit(async |session: Session| handler(&session)).await
    }

    /// What the session holds as `n`.
    pub async fn n(&self) -> String {
        self.does(|session| Ok(format!("{:?}", session.get::<u64>("n")?))).await.body
    }

    /// A request to a handler that gets the session as the layer made it.
    pub async fn request<F, T>(&self, mut request: Request<Body>, handler: impl FnOnce(Session) -> F) -> Answer
    where
        F: Future<Output = T>,
        T: IntoResponse,
    {
        self.add_cookies(request.headers_mut());
        let mut handler = Some(handler);
        let service = self.layer.layer(service_fn(|request: Request<Body>| {
            let session = request.extensions().get::<Session>().unwrap().clone();
            let handler = handler.take().unwrap();
            async move { Ok::<Response, Infallible>(handler(session).await.into_response()) }
        }));
        let response = service.oneshot(request).await.unwrap();
        self.take_cookies(response.headers());
        Answer::new(response).await
    }

    pub fn add_cookies(&self, headers: &mut HeaderMap) {
        let jar = self.jar.lock().unwrap();
        if !jar.is_empty() && !headers.contains_key(header::COOKIE) {
            let cookies: Vec<_> = jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
            headers.insert(header::COOKIE, cookies.join("; ").parse().unwrap());
        }
    }

    pub fn take_cookies(&self, headers: &HeaderMap) {
        for cookie in headers.get_all(header::SET_COOKIE) {
            let cookie = cookie::Cookie::parse(cookie.to_str().unwrap()).unwrap();
            let mut jar = self.jar.lock().unwrap();
            match cookie.max_age() {
                Some(age) if age.is_zero() => jar.remove(cookie.name()),
                _ => jar.insert(cookie.name().to_owned(), cookie.value().to_owned()),
            };
        }
    }
}

/// A response, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    async fn new(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Self { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    /// The texts of all `Set-Cookie`.
    pub fn set_cookies(&self) -> Vec<&str> {
        self.headers.get_all(header::SET_COOKIE).iter().map(|value| value.to_str().unwrap()).collect()
    }

    /// The one cookie that was set, not removed.
    pub fn new_id(&self) -> Option<String> {
        let cookies = self.set_cookies().into_iter().map(|line| cookie::Cookie::parse(line.to_owned()).unwrap());
        let set: Vec<_> = cookies.filter(|cookie| !cookie.value().is_empty()).collect();
        assert!(set.len() < 2, "{set:?} were set");
        set.first().map(|cookie| cookie.value().to_owned())
    }

    /// Whether cookies are removed, and none is set.
    pub fn removes_cookie(&self) -> bool {
        let lines = self.set_cookies();
        !lines.is_empty() && lines.iter().all(|line| line.contains("Max-Age=0"))
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.is_success(), "{self:?}");
        self
    }

    #[track_caller]
    pub fn sets_no_cookie(self) -> Self {
        assert!(self.set_cookies().is_empty(), "{self:?}");
        self
    }
}

// What handlers often do.

pub fn increment(session: &Session) -> Result<(), Error> {
    session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1)
}

pub fn rework(session: &Session) -> Result<(), Error> {
    session.rework();
    Ok(())
}

pub fn bind_ada(session: &Session) -> Result<(), Error> {
    session.bind("ada");
    Ok(())
}

pub fn delete(session: &Session) -> Result<(), Error> {
    session.delete();
    Ok(())
}

pub fn clear_others(session: &Session) -> Result<(), Error> {
    session.clear_others();
    Ok(())
}
