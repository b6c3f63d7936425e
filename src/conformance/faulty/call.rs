//! The calls of a backend as values: the method with its arguments, and its answer.

use std::time::Duration;

use crate::{
    backend::{
        Backend, Outcome, Result,
        clear::{Clear, Cleared},
        scan::{Count, Cursor, Page},
        terms::{Created, Mark, Terms},
    },
    record::{
        Record,
        id::{Owner, RecordId},
    },
};

/// The methods of a [`Backend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is the method of that name")]
pub enum Verb {
    Load,
    Create,
    Update,
    Touch,
    Delete,
    List,
    Clear,
    Mark,
    Scan,
    Count,
    Close,
}

/// One call of a [`Faulty`](super::Faulty) backend.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Call {
    /// Which method is called.
    pub verb: Verb,
    /// The number of this call among all calls, counted from 1.
    pub number: u64,
    /// The number of this call among the calls of the same method, counted from 1.
    pub number_of_verb: u64,
    /// The record that the call is about; `None` for methods that are not about one record.
    pub id: Option<RecordId>,
    /// The owner that the call is about; `None` for calls about a visitor's record, and for calls about all records.
    pub owner: Option<Owner>,
    /// The record to be written, by [`Create`](Verb::Create) and [`Update`](Verb::Update). `None` for other methods.
    pub record: Option<Record>,
    /// The terms of a [`Create`](Verb::Create). `None` for other methods.
    pub terms: Option<Terms>,
    /// Whether a [`Create`](Verb::Create) or [`Update`](Verb::Update) is a retry.
    pub retry: bool,
    /// The arguments of a [`Clear`](Verb::Clear). `None` for other methods.
    pub clear: Option<Clear>,
}

/// The answer of a method, for [`Fault::change`](super::Fault::change).
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is what the method of that name answers")]
pub enum Answer {
    Load(Option<Record>),
    Create(Created),
    Update(Outcome),
    Touch,
    Delete(bool),
    List(Vec<Record>),
    Clear(Cleared),
    Mark(Mark),
    Scan(Page),
    Count(Count),
    Close,
}

/// A method with its arguments.
#[derive(Clone)]
pub(super) enum Request {
    Load(RecordId),
    Create(Record, Terms),
    Update(i64, Record, bool),
    Touch(RecordId, i64, Duration),
    Delete(RecordId),
    List(Owner),
    Clear(Owner, Clear),
    Mark(Owner),
    Scan(Option<Cursor>, usize),
    Count,
    Close,
}

impl Request {
    pub(super) async fn act(self, backend: &impl Backend) -> Result<Answer> {
        Ok(match self {
            Self::Load(id) => Answer::Load(backend.load(id).await?),
            Self::Create(record, terms) => Answer::Create(backend.create(record, terms).await?),
            Self::Update(expected, record, retry) => Answer::Update(backend.update(expected, record, retry).await?),
            Self::Touch(id, version, ttl) => {
                backend.touch(id, version, ttl).await?;
                Answer::Touch
            }
            Self::Delete(id) => Answer::Delete(backend.delete(id).await?),
            Self::List(owner) => Answer::List(backend.list(owner).await?),
            Self::Clear(owner, clear) => Answer::Clear(backend.clear(owner, clear).await?),
            Self::Mark(owner) => Answer::Mark(backend.mark(owner).await?),
            Self::Scan(after, most) => Answer::Scan(backend.scan(after, most).await?),
            Self::Count => Answer::Count(backend.count().await?),
            Self::Close => {
                backend.close().await?;
                Answer::Close
            }
        })
    }

    /// What a rule sees of it, not counted yet.
    pub(super) fn call(&self) -> Call {
        let of = |verb, owner| Call {
            verb,
            number: 0,
            number_of_verb: 0,
            id: None,
            owner,
            record: None,
            terms: None,
            retry: false,
            clear: None,
        };
        let on = |verb, id: RecordId| Call { id: Some(id), ..of(verb, id.owner()) };
        let write = |verb, record: &Record, retry| Call { record: Some(record.clone()), retry, ..on(verb, record.id) };
        match self {
            Self::Load(id) => on(Verb::Load, *id),
            Self::Create(record, terms) => {
                Call { terms: Some(terms.clone()), ..write(Verb::Create, record, terms.retry) }
            }
            Self::Update(_, record, retry) => write(Verb::Update, record, *retry),
            Self::Touch(id, ..) => on(Verb::Touch, *id),
            Self::Delete(id) => on(Verb::Delete, *id),
            Self::List(owner) => of(Verb::List, Some(*owner)),
            Self::Clear(owner, clear) => Call { clear: Some(*clear), ..of(Verb::Clear, Some(*owner)) },
            Self::Mark(owner) => of(Verb::Mark, Some(*owner)),
            Self::Scan(..) => of(Verb::Scan, None),
            Self::Count => of(Verb::Count, None),
            Self::Close => of(Verb::Close, None),
        }
    }
}
