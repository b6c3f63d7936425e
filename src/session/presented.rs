//! The session cookies of a request, and the lookup that says which session they lead to.

use std::sync::Arc;

use crate::{
    record::{
        secrets::Opening,
        token::{Credentials, IdText},
    },
    sessions::{
        engine::Engine,
        loaded::{Found, Loaded, Opened, Unreadable},
    },
};

/// The value of a session cookie.
pub(crate) enum CookieValue<'a> {
    User(&'a str),
    Visitor(&'a str),
}

/// The values of the session cookies, as received.
pub(crate) struct Cookies {
    /// The user's cookies and then the visitor's, each with a semicolon after it.
    text: Box<str>,
    visitors_at: usize,
}

/// The session that a request's changes apply to.
#[derive(Clone)]
pub(crate) enum Base {
    /// No session.
    Nothing,
    /// A live session, by its newest secret or a previous one.
    Live(Opened),
    /// A session whose ID was superseded before the request loaded it. The request can only sign it out.
    Superseded(Opened),
    /// A session that has ended, or had another login, since the request loaded it. It has the contents that were last seen.
    Gone(Opened),
    /// The cookies lead to more than one session. None of them counts, because any of them may have been planted.
    Refused,
    /// A record that cannot be read. It is left unchanged.
    Unreadable(Box<Unreadable>),
}

/// What the cookies lead to in addition to the [`Base`]. Sign-outs have to end these as well.
#[derive(Clone, Default)]
pub(crate) struct Besides {
    /// Other sessions that a cookie opens.
    pub(crate) others: Vec<Opened>,
    /// Whether there may be sessions that no cookie opens. This is so if a cookie leads to a live record by a secret that is not
    /// accepted, is encrypted with another key, or exceeds the number of cookies that are tried.
    pub(crate) unproven: bool,
    /// Records other than the base that cannot be read.
    pub(crate) unreadable: Vec<Unreadable>,
}

/// Collects the lookups of one cookie after another.
#[derive(Default)]
pub(crate) struct Presented {
    live: Option<Opened>,
    superseded: Option<Opened>,
    unreadable: Vec<Unreadable>,
    refused: bool,
    /// Whether there was an ID of a user's session.
    pub(crate) user_id: bool,
    /// How many cookies were tried.
    looked_at: usize,
    /// How many of them were not valid IDs of their kind.
    pub(crate) malformed: usize,
    pub(crate) besides: Besides,
}

impl Cookies {
    /// Copies the values. Returns `None` if there are none.
    #[inline]
    pub(crate) fn collect<'a>(cookies: impl Iterator<Item = CookieValue<'a>>) -> Option<Self> {
        let (mut users, mut visitors) = (String::new(), String::new());
        for cookie in cookies {
            let (joined, value) = match cookie {
                CookieValue::User(value) => (&mut users, value),
                CookieValue::Visitor(value) => (&mut visitors, value),
            };
            if joined.is_empty() {
                // There is rarely more than one cookie.
                joined.reserve_exact(value.len() + 1);
            }
            joined.push_str(value);
            joined.push(';');
        }
        let visitors_at = users.len();
        users.push_str(&visitors);
        (!users.is_empty()).then(|| Self { text: users.into_boxed_str(), visitors_at })
    }

    pub(crate) fn has_users(&self) -> bool {
        self.visitors_at > 0
    }

    pub(crate) fn has_visitors(&self) -> bool {
        self.visitors_at < self.text.len()
    }

    /// Returns the next ID from this position. Visitors' cookies come last, and count only if no user's cookie did.
    pub(crate) fn next_id(&self, at: &mut usize, presented: &mut Presented, engine: &Engine) -> Option<Credentials> {
        loop {
            let is_visitors = *at >= self.visitors_at;
            let rest = self.text.get(*at..).filter(|rest| !rest.is_empty())?;
            if is_visitors && !presented.wants_visitors() || !presented.may_look_at_one_more() {
                return None;
            }
            let value = &rest[..memchr::memchr(b';', rest.as_bytes()).unwrap_or(rest.len())];
            *at += value.len() + 1;
            match engine.credentials(value) {
                IdText::Id(id) if id.record.owner().is_none() == is_visitors => {
                    presented.user_id |= !is_visitors;
                    return Some(id);
                }
                // It may be one of our IDs, encrypted with a key that this process does not have.
                IdText::Foreign if !is_visitors => presented.besides.unproven = true,
                IdText::Id(_) | IdText::Foreign | IdText::Malformed => presented.malformed += 1,
            }
        }
    }
}

impl Presented {
    /// Adds the lookup of one more ID.
    pub(crate) fn take(&mut self, found: Found) {
        match found {
            Found::Nothing => {}
            Found::Closed => self.besides.unproven = true,
            Found::Unreadable(unreadable) => self.unreadable.push(*unreadable),
            Found::Opened(opened, Opening::Superseded) => match &self.superseded {
                None => self.superseded = Some(opened),
                Some(first) if first.loaded.id == opened.loaded.id => {}
                Some(_) => self.besides.others.push(opened),
            },
            Found::Opened(opened, opening) => match &mut self.live {
                None => self.live = Some(opened),
                Some(first) if first.loaded.id == opened.loaded.id => {
                    if opening == Opening::Newest {
                        *first = opened;
                    }
                }
                Some(first) => {
                    // Of several sessions of one user, the first one counts. Two visitors' sessions are unrelated.
                    self.refused |= first.loaded.owner().is_none() || first.loaded.owner() != opened.loaded.owner();
                    self.besides.others.push(opened);
                }
            },
        }
    }

    /// Returns whether one more cookie may be tried. If not, there are too many.
    pub(crate) fn may_look_at_one_more(&mut self) -> bool {
        self.looked_at += 1;
        if self.looked_at > MAX_COOKIES {
            self.take_too_many();
        }
        self.looked_at <= MAX_COOKIES
    }

    /// Records that there are more cookies than are tried, so it is not known which one counts.
    pub(crate) fn take_too_many(&mut self) {
        self.refused = true;
        self.besides.unproven = true;
    }

    /// Returns whether the visitor's cookies count, because no user's cookie leads to a session.
    pub(crate) fn wants_visitors(&self) -> bool {
        let is_visitors = |live: &Opened| live.loaded.owner().is_none();
        self.live.as_ref().is_none_or(is_visitors) && self.superseded.is_none() && self.unreadable.is_empty()
    }

    /// Returns whether there is a session that counts.
    pub(crate) fn live(&self) -> Option<&Arc<Loaded>> {
        self.live.as_ref().filter(|_| !self.refused).map(|opened| &opened.loaded)
    }

    /// Returns the base, and what else the cookies lead to.
    pub(crate) fn finish(self) -> (Base, Option<Box<Besides>>) {
        let Self { live, superseded, mut unreadable, refused, mut besides, .. } = self;
        let counts = live.is_none() && superseded.is_none() && !refused;
        let first = if counts { unreadable.pop() } else { None };
        besides.unreadable = unreadable;
        let base = match (live, superseded, first) {
            (live, superseded, _) if refused => {
                besides.others.extend(live.into_iter().chain(superseded));
                Base::Refused
            }
            (Some(live), superseded, _) => {
                besides.others.extend(superseded.filter(|other| other.loaded.id != live.loaded.id));
                Base::Live(live)
            }
            (None, Some(superseded), _) => Base::Superseded(superseded),
            (None, None, Some(unreadable)) => Base::Unreadable(Box::new(unreadable)),
            (None, None, None) => Base::Nothing,
        };
        // For most requests there is only the base.
        let is_empty = besides.others.is_empty() && besides.unreadable.is_empty() && !besides.unproven;
        (base, (!is_empty).then(|| Box::new(besides)))
    }
}

impl Base {
    /// Returns the session key of the loaded session.
    pub(crate) fn key(&self) -> Option<&str> {
        match self {
            Self::Live(opened) | Self::Gone(opened) => opened.key(),
            Self::Nothing | Self::Superseded(_) | Self::Refused | Self::Unreadable(_) => None,
        }
    }

    /// Returns the live session of a user.
    pub(crate) fn signed_in(&self) -> Option<(&Opened, &str)> {
        match self {
            Self::Live(opened) => opened.key().map(|key| (opened, key)),
            _ => None,
        }
    }

    /// Returns the live session of a visitor.
    pub(crate) fn visitor(&self) -> Option<&Opened> {
        match self {
            Self::Live(opened) if opened.loaded.owner().is_none() => Some(opened),
            _ => None,
        }
    }
}

/// How many session cookies are tried and decrypted.
pub(crate) const MAX_COOKIES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::{Error, ErrorKind},
        record::data::Data,
        sessions::loaded::sample,
    };

    fn found(number: u8, key: Option<&str>, opening: Opening) -> Found {
        Found::Opened(sample(number, key, Data::default()), opening)
    }

    fn live(number: u8, key: &str) -> Found {
        found(number, Some(key), Opening::Newest)
    }

    fn finish(all: impl IntoIterator<Item = Found>) -> (Base, Besides) {
        let mut presented = Presented::default();
        all.into_iter().for_each(|found| presented.take(found));
        let (base, besides) = presented.finish();
        (base, besides.map(|besides| *besides).unwrap_or_default())
    }

    fn number(opened: &Opened) -> i64 {
        opened.loaded.version
    }

    #[test]
    fn of_several_sessions_of_one_user_the_first_counts() {
        let (base, besides) = finish([live(1, "ada"), live(2, "ada")]);
        assert!(matches!(base, Base::Live(opened) if number(&opened) == 1));
        assert_eq!(besides.others.iter().map(number).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn of_two_secrets_of_one_session_the_newest_counts() {
        let mut old = sample(1, Some("ada"), Data::default());
        old.secret = sample(9, None, Data::default()).secret;
        let (base, besides) = finish([Found::Opened(old, Opening::Previous), live(1, "ada")]);
        assert!(matches!(base, Base::Live(opened) if opened.is_newest()));
        assert!(besides.others.is_empty());
    }

    /// Rule 13.
    #[test]
    fn sessions_of_two_users_or_two_visitors_are_none() {
        for all in
            [[live(1, "ada"), live(2, "grace")], [found(1, None, Opening::Newest), found(2, None, Opening::Newest)]]
        {
            let (base, besides) = finish(all);
            assert!(matches!(base, Base::Refused));
            assert_eq!(besides.others.len(), 2);
        }
    }

    /// Rule 14: a sign-out ends each of them.
    #[test]
    fn a_third_visitors_session_is_looked_up_as_well() {
        let mut presented = Presented::default();
        for number in 1..=3 {
            assert!(presented.wants_visitors());
            presented.take(found(number, None, Opening::Newest));
        }
        assert_eq!(presented.finish().1.unwrap().others.len(), 3);
    }

    #[test]
    fn a_superseded_id_is_no_session_and_hides_the_visitors() {
        let mut presented = Presented::default();
        presented.take(found(1, Some("ada"), Opening::Superseded));
        assert!(!presented.wants_visitors() && presented.live().is_none());
        assert!(matches!(presented.finish().0, Base::Superseded(_)));
        // Beside a live one it only counts for sign-outs.
        let (base, besides) = finish([found(1, Some("ada"), Opening::Superseded), live(2, "ada")]);
        assert!(matches!(base, Base::Live(opened) if number(&opened) == 2));
        assert_eq!(besides.others.len(), 1);
    }

    #[test]
    fn what_is_unreadable_or_dead_is_no_session() {
        let error = Error::new(ErrorKind::Unreadable, "a record is broken");
        let id = sample(1, None, Data::default()).loaded.id;
        let unreadable = || Found::Unreadable(Box::new(Unreadable { id, error: error.clone(), is_proven: false }));
        assert!(matches!(finish([Found::Nothing, unreadable()]).0, Base::Unreadable(_)));
        assert!(matches!(finish([unreadable(), live(1, "ada")]).0, Base::Live(_)));
        let (base, besides) = finish([Found::Closed]);
        assert!(matches!(base, Base::Nothing) && besides.unproven);
    }

    #[test]
    fn too_many_cookies_are_none() {
        let mut presented = Presented::default();
        assert!((0..MAX_COOKIES).all(|_| presented.may_look_at_one_more()));
        presented.take(live(1, "ada"));
        assert!(!presented.may_look_at_one_more());
        let (base, besides) = presented.finish();
        assert!(matches!(base, Base::Refused) && besides.unwrap().unproven);
    }
}
