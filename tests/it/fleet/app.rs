//! The application that the fleet visits. Its handler does what the request asks for.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::to_bytes,
    extract::{FromRequestParts, Path, Request, State},
    response::{IntoResponse, Response},
    routing::post,
};
use http::StatusCode;
use jam_session::{Data, Error, ErrorKind, Session, SessionLayer, Sessions, SignIn};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{
    ask::{Ask, End, Moment, Said, Seen, What, Write},
    sabotage::Sabotage,
};

pub struct App {
    sessions: Sessions,
    sabotage: Option<Sabotage>,
    gates: Mutex<HashMap<usize, Arc<Gate>>>,
    /// Requests whose handler has recorded what it was asked to, with the handle of what it had loaded.
    pub recorded: Mutex<HashMap<usize, Option<String>>>,
    /// Requests whose `save` said yes.
    pub saved: Mutex<Vec<usize>>,
}

struct Gate {
    arrived: Semaphore,
    open: Semaphore,
}

impl App {
    pub fn new(sessions: Sessions, sabotage: Option<Sabotage>) -> Arc<Self> {
        let (gates, recorded, saved) = Default::default();
        Arc::new(Self { sessions, sabotage, gates, recorded, saved })
    }

    pub fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/act", post(act))
            .route("/arrived/{id}", post(arrived))
            .route("/open/{id}", post(open))
            .layer(SessionLayer::new(self.sessions.clone()))
            .with_state(Arc::clone(self))
    }

    /// Waits until everything that was begun has ended.
    pub async fn close(&self) {
        self.sessions.close().await.unwrap();
    }

    fn gate(&self, id: usize) -> Arc<Gate> {
        let gate = || Arc::new(Gate { arrived: Semaphore::new(0), open: Semaphore::new(0) });
        self.gates.lock().unwrap().entry(id).or_insert_with(gate).clone()
    }

    /// Waits until that request waits.
    pub async fn arrived(&self, id: usize) {
        drop(self.gate(id).arrived.acquire().await);
    }

    pub fn open(&self, id: usize) {
        self.gate(id).open.add_permits(1);
    }

    async fn wait(&self, ask: &Ask, moment: Moment) {
        if ask.wait == Some(moment) {
            let gate = self.gate(ask.id);
            gate.arrived.add_permits(1);
            drop(gate.open.acquire().await);
        }
    }

    async fn act(&self, request: Request) -> Result<Response, Error> {
        let (mut parts, body) = request.into_parts();
        let ask: Ask = serde_json::from_slice(&to_bytes(body, 1 << 16).await.unwrap()).unwrap();
        self.wait(&ask, Moment::Come).await;
        let mut said = Said { id: ask.id, ..Said::default() };
        match &ask.what {
            What::Unused => return Ok(Json(said).into_response()),
            What::ListOf(user) => {
                said.list = Some(self.list(user).await?);
                return Ok(Json(said).into_response());
            }
            What::ClearOf(user) => {
                self.sessions.clear(user).await?;
                return Ok(Json(said).into_response());
            }
            _ => {}
        }
        let session = match ask.blind {
            true => parts.extensions.get::<Session>().unwrap().clone(),
            false => Session::from_request_parts(&mut parts, &()).await?,
        };
        if !ask.blind {
            said.seen = Some(seen(&session)?);
        }
        let login = match ask.login() {
            Some(user) if ask.takes_login => Some(match &ask.kept {
                Some(kept) => serde_json::from_value(kept.login.clone()).unwrap(),
                None => self.sessions.login(user).await?,
            }),
            _ => None,
        };
        self.wait(&ask, Moment::Loaded).await;
        let late = match ask.login() {
            Some(user) if self.sabotage == Some(Sabotage::SlowBindsSurvive) => {
                // As if it was enough that there was a session when the request came.
                let seen = said.seen.as_ref().filter(|seen| seen.key.is_some()).and_then(|seen| seen.handle.as_ref());
                let listed = self.list(session.key().as_deref().unwrap_or(user)).await?;
                let is_live = seen.is_some() && listed.iter().any(|listed| listed.handle.as_ref() == seen);
                if is_live { None } else { Some(self.sessions.login(user).await?) }
            }
            _ => None,
        };
        let sign_in = |user: &String| late.or(login).map_or_else(|| SignIn::from(user), SignIn::from);
        match &ask.what {
            // As if only a live session could be ended.
            _ if self.sabotage == Some(Sabotage::SupersededSignOutsDoNothing)
                && matches!(ask.what, What::Delete | What::Clear)
                && session.handle().is_none() => {}
            What::Bind(user) => {
                session.bind(sign_in(user));
                session.insert("login", ask.id)?;
            }
            What::Create(user) => session.create(sign_in(user), json!({"login": ask.id}))?,
            What::ClearAndBind(user) => {
                session.clear();
                session.bind(sign_in(user));
                session.insert("login", ask.id)?;
            }
            What::OthersAndBind(user) => {
                session.clear_others();
                session.bind(sign_in(user));
                session.insert("login", ask.id)?;
            }
            What::Rework => session.rework(),
            What::Delete => session.delete(),
            What::Clear => session.clear(),
            What::ClearOthers => session.clear_others(),
            What::Huge => session.insert("huge", "x".repeat(MAX_SIZE))?,
            What::List => {
                if let Some(user) = session.key() {
                    said.list = Some(self.list(&user).await?);
                }
            }
            What::Revoke(handle) => {
                if let Some(user) = session.key() {
                    said.revoked = Some(self.sessions.revoke(user, handle).await?);
                }
            }
            What::TakeLogin(user) => {
                said.login = Some(serde_json::to_value(self.sessions.login(user).await?).unwrap());
            }
            What::Visit | What::Unused | What::ListOf(_) | What::ClearOf(_) => {}
        }
        write(&session, &ask.writes)?;
        self.recorded.lock().unwrap().insert(ask.id, said.seen.as_ref().and_then(|seen| seen.handle.clone()));
        self.wait(&ask, Moment::Recorded).await;
        if ask.save {
            let saved = match session.save().await {
                Err(error) if ask.again && error.kind() == ErrorKind::Unavailable => {
                    said.again = true;
                    session.save().await
                }
                saved => saved,
            };
            match saved {
                Ok(()) => {
                    self.saved.lock().unwrap().push(ask.id);
                    said.saved = Some("ok".to_owned());
                    said.after = Some(seen(&session)?);
                }
                Err(error) if error.kind() == ErrorKind::NotFound => said.saved = Some("gone".to_owned()),
                Err(error) if error.kind() == ErrorKind::CrossSite => said.saved = Some("cross-site".to_owned()),
                Err(error) => return Err(error),
            }
            self.wait(&ask, Moment::Saved).await;
            write(&session, &ask.late)?;
        }
        Ok(match ask.end {
            End::Well => Json(said).into_response(),
            End::Fail => (StatusCode::INTERNAL_SERVER_ERROR, Json(said)).into_response(),
            // A panic without the noise.
            End::Panic => std::panic::resume_unwind(Box::new(())),
        })
    }

    async fn list(&self, user: &str) -> Result<Vec<Seen>, Error> {
        let infos = self.sessions.list(user).await?;
        let seen = infos.into_iter().map(|info| Seen {
            handle: Some(info.handle),
            key: Some(user.to_owned()),
            data: all_of(&info.data),
        });
        Ok(seen.collect())
    }
}

async fn act(State(app): State<Arc<App>>, request: Request) -> Response {
    app.act(request).await.unwrap_or_else(Error::into_response)
}

async fn arrived(State(app): State<Arc<App>>, Path(id): Path<usize>) {
    app.arrived(id).await;
}

async fn open(State(app): State<Arc<App>>, Path(id): Path<usize>) {
    app.open(id);
}

fn seen(session: &Session) -> Result<Seen, Error> {
    Ok(Seen { handle: session.handle(), key: session.key(), data: all_of(&session.data()?) })
}

fn all_of(data: &Data) -> BTreeMap<String, Value> {
    data.names().map(|name| (name.to_owned(), data.get(name).unwrap().unwrap())).collect()
}

fn write(session: &Session, writes: &[Write]) -> Result<(), Error> {
    for write in writes {
        match write {
            Write::Add(counter) => session.modify(&format!("n{counter}"), |n: Option<u64>| n.unwrap_or(0) + 1)?,
            Write::Put(name) => session.insert(&format!("w{name}"), name)?,
            Write::Take(name) => session.remove(&format!("w{name}")),
            Write::Theme(name) => session.insert("theme", name)?,
            Write::Idle => {
                session.insert("idle", 1)?;
                session.remove("idle");
            }
        }
    }
    Ok(())
}

/// The most that a session may hold.
pub const MAX_SIZE: usize = 16_384;
