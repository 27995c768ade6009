//! Lists, page by page, by keyset: a page starts after the last id of the one before.
//!
//! Unlike with an offset, a page costs the same however far in it is, and none is skipped or seen twice when
//! something is added meanwhile. The cursor is opaque, so that what it holds can change.
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::problem::Problem;

/// Which page is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// At most so many, 1 to 100.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<i64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A page that can be asked for.
#[derive(Debug, Clone, Copy)]
pub struct PageRequest {
    /// At most so many.
    pub limit: i64,
    /// After this one; from the beginning if `None`.
    pub after: Option<Uuid>,
}

impl PageQuery {
    /// A page as a list with filters of its own asks for it.
    pub fn new(limit: Option<i64>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    /// Checks the page that was asked for.
    ///
    /// # Errors
    /// 400 for a limit out of bounds or a cursor that is not ours.
    pub fn parse(&self) -> Result<PageRequest, Problem> {
        let limit = self.limit.unwrap_or(20);
        if !(1..=100).contains(&limit) {
            return Err(Problem::malformed("limit must be between 1 and 100."));
        }
        let after = self.cursor.as_deref().map(decode_cursor).transpose()?;
        Ok(PageRequest { limit, after })
    }
}

fn decode_cursor(cursor: &str) -> Result<Uuid, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    bytes
        .and_then(|bytes| Uuid::from_slice(&bytes).ok())
        .ok_or_else(|| Problem::malformed("cursor is not one that this service gave."))
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub data: Vec<T>,
    /// Where the next page begins; `null` on the last.
    pub next_cursor: Option<String>,
}

impl PageRequest {
    /// How many rows to ask the database for: one more than is shown, to know whether there is another page.
    pub fn rows(self) -> i64 {
        self.limit + 1
    }

    /// Makes the page from as many rows as [`Self::rows`] asked for.
    pub fn page<T>(self, mut rows: Vec<T>, id: impl Fn(&T) -> Uuid) -> Page<T> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(|last| URL_SAFE_NO_PAD.encode(id(last)));
        Page { data: rows, next_cursor }
    }
}
