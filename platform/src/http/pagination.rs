//! Keyset pagination of lists: a page starts after the sort key of the last row of the previous page.
//!
//! Compared with an offset, every page has the same cost, and rows added between two requests cause no skipped or
//! repeated rows. The cursor is opaque, so its content can change.
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{problem::Problem, timestamp::Timestamp};

/// The requested page of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Maximum number of items, 1 to 100.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<i64>,
    /// `next_cursor` of the previous page.
    #[param(pattern = "^[A-Za-z0-9_-]{21}[AQgw]$")]
    cursor: Option<String>,
}

/// The sort key of a list, as stored in a cursor. It is unique for each row.
pub trait Key: Copy {
    /// Returns the key as bytes.
    fn write(self) -> Vec<u8>;

    /// Parses the bytes that [`Self::write`] returned. Returns `None` for bytes that encode no key.
    fn read(bytes: &[u8]) -> Option<Self>;
}

impl Key for Uuid {
    fn write(self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        Self::from_slice(bytes).ok()
    }
}

/// The sort key of lists that are sorted by time. The id makes the key unique, because two rows may have the same
/// time.
impl Key for (DateTime<Utc>, Uuid) {
    fn write(self) -> Vec<u8> {
        [self.0.timestamp_micros().to_be_bytes().as_slice(), self.1.as_bytes()].concat()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (micros, id) = bytes.split_first_chunk()?;
        let time = DateTime::from_timestamp_micros(i64::from_be_bytes(*micros))?;
        Some((Timestamp::try_from(time).ok()?.into(), Uuid::read(id)?))
    }
}

/// A page request that has been validated.
#[derive(Debug, Clone, Copy)]
pub struct PageRequest<K = Uuid> {
    /// Maximum number of rows in the page.
    pub limit: i64,
    /// The key that the page starts after; `None` for the first page.
    pub after: Option<K>,
}

impl PageQuery {
    /// Builds the page query from the fields `limit` and `cursor` of a query string that also has filters.
    pub fn new(limit: Option<i64>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    /// Validates the page query.
    ///
    /// # Errors
    /// 400 for a limit out of range, or a malformed cursor.
    pub fn parse<K: Key>(&self) -> Result<PageRequest<K>, Problem> {
        let limit = self.limit.unwrap_or(20);
        if !(1..=100).contains(&limit) {
            return Err(Problem::malformed("limit must be between 1 and 100."));
        }
        let after = self.cursor.as_deref().map(decode_cursor).transpose()?;
        Ok(PageRequest { limit, after })
    }
}

fn decode_cursor<K: Key>(cursor: &str) -> Result<K, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    bytes
        .and_then(|bytes| K::read(&bytes))
        .ok_or_else(|| Problem::malformed("cursor must be a next_cursor of this service."))
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub data: Vec<T>,
    /// Cursor of the next page; `null` on the last page.
    pub next_cursor: Option<String>,
}

impl<K: Key> PageRequest<K> {
    /// Returns the number of rows to select: one more than the page shows, to detect whether another page follows.
    pub fn rows(self) -> i64 {
        self.limit + 1
    }

    /// Builds the page from the selected rows. Their number is at most [`Self::rows`].
    pub fn page<T>(self, mut rows: Vec<T>, key: impl Fn(&T) -> K) -> Page<T> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(|last| URL_SAFE_NO_PAD.encode(key(last).write()));
        Page { data: rows, next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_starts_after_the_last_row_of_the_previous_page() {
        let rows: Vec<_> = (1..=3).map(Uuid::from_u128).collect();
        let first = PageQuery::new(Some(2), None).parse::<Uuid>().unwrap();
        let page = first.page(rows.clone(), |id| *id);
        assert_eq!(page.data, rows[..2]);
        let second = PageQuery::new(Some(2), page.next_cursor).parse::<Uuid>().unwrap();
        assert_eq!(second.after, Some(rows[1]));
        assert_eq!(second.page(rows[2..].to_vec(), |id| *id).next_cursor, None);
    }

    proptest! {
        #[test]
        fn decoding_a_cursor_returns_its_key(micros in -60_000_000_000_000_000..250_000_000_000_000_000_i64, id: u128) {
            let (time, id) = (DateTime::from_timestamp_micros(micros).unwrap(), Uuid::from_u128(id));
            prop_assert_eq!(Uuid::read(&id.write()), Some(id));
            prop_assert_eq!(<(DateTime<Utc>, Uuid)>::read(&(time, id).write()), Some((time, id)));
        }

        #[test]
        fn a_cursor_with_an_impossible_time_is_rejected(
            micros in prop_oneof![i64::MIN..-62_167_219_200_000_000, 253_402_300_800_000_000..=i64::MAX],
            id: u128,
        ) {
            let bytes = [micros.to_be_bytes().as_slice(), Uuid::from_u128(id).as_bytes()].concat();
            prop_assert_eq!(<(DateTime<Utc>, Uuid)>::read(&bytes), None);
        }

        #[test]
        fn a_cursor_of_the_documented_form_is_accepted(
            id in "[A-Za-z0-9_-]{21}[AQgw]",
            time_and_id in "A[A-Za-z0-3][A-Za-z0-9_-]{30}",
        ) {
            prop_assert!(decode_cursor::<Uuid>(&id).is_ok());
            prop_assert!(decode_cursor::<(DateTime<Utc>, Uuid)>(&time_and_id).is_ok());
        }

        #[test]
        fn a_cursor_of_this_service_has_the_documented_form(micros in 0..252_201_579_132_747_775_i64, id: u128) {
            let (time, id) = (DateTime::from_timestamp_micros(micros).unwrap(), Uuid::from_u128(id));
            let id_cursor = URL_SAFE_NO_PAD.encode(id.write());
            prop_assert!(id_cursor.len() == 22 && id_cursor.ends_with(['A', 'Q', 'g', 'w']), "{}", id_cursor);
            let time_cursor = URL_SAFE_NO_PAD.encode((time, id).write());
            let second = time_cursor.strip_prefix('A').and_then(|rest| rest.chars().next());
            prop_assert!(time_cursor.len() == 32 && matches!(second, Some('A'..='Z' | 'a'..='z' | '0'..='3')), "{}", time_cursor);
        }

        #[test]
        fn an_invalid_cursor_is_rejected(cursor in "\\PC{0,40}") {
            let page = PageQuery::new(None, Some(cursor.clone())).parse::<(DateTime<Utc>, Uuid)>();
            prop_assert!(page.is_err() || URL_SAFE_NO_PAD.decode(cursor).unwrap().len() == 24);
        }
    }
}
