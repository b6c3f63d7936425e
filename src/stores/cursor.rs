//! Cursors of the in-process stores: a slot in the table, which a record keeps as long as it lives.

use crate::{
    backend::scan::Cursor,
    error::{Error, ErrorKind},
};

/// Creates a cursor for that slot, in that opening of a store.
pub(super) fn cursor(opening: i64, place: u64) -> Cursor {
    Cursor::new([opening.to_be_bytes(), place.to_be_bytes()].concat())
}

/// Returns the slot of a cursor. Without a cursor, a scan begins at the first slot.
///
/// # Errors
/// The cursor is from another store, or from another opening of this store, where the records have other slots.
pub(super) fn place(opening: i64, cursor: Option<Cursor>) -> Result<u64, Error> {
    let Some(cursor) = cursor else { return Ok(0) };
    let (of, place) = cursor.as_bytes().split_first_chunk().unwrap_or((&[0; 8], &[]));
    match place.try_into() {
        Ok(place) if i64::from_be_bytes(*of) == opening => Ok(u64::from_be_bytes(place)),
        _ => Err(Error::new(
            ErrorKind::Config,
            "this scan was begun on other sessions, or before they were opened again; begin it again",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_leads_to_its_place_in_its_opening_and_nowhere_else() {
        for at in [0, 1, 1 << 32, u64::MAX] {
            assert_eq!(place(7, Some(cursor(7, at))).ok(), Some(at));
            assert!(place(8, Some(cursor(7, at))).is_err());
        }
        assert_eq!(place(7, None).ok(), Some(0));
        let right = cursor(7, 3);
        for end in 0..right.as_bytes().len() {
            assert!(place(7, Some(Cursor::new(right.as_bytes()[..end].to_vec()))).is_err(), "{end}");
            assert!(place(0, Some(Cursor::new(vec![0; end]))).is_err(), "{end}");
        }
        assert!(place(7, Some(Cursor::new([right.as_bytes(), &[0]].concat()))).is_err());
    }
}
