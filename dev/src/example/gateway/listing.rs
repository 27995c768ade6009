//! The paginated lists of charges and refunds by time of creation, and their faults.
//!
//! A real gateway lists from an index, in which an entry may be late, missing, repeated or out of order. The faults
//! simulate this. They affect neither the ledger itself nor the list by reference.
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Maximum number of entries of a page if the query has no `limit`.
const DEFAULT_LIMIT: usize = 20;

/// Maximum value of `limit` in a query.
const MAX_LIMIT: usize = 100;

/// The query of `GET /v1/charges` and `GET /v1/refunds`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    reference: Option<Uuid>,
    created_after: Option<DateTime<Utc>>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// A validated query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ListRequest {
    /// Every object with this reference.
    ByReference(Uuid),
    /// A page of the objects created after this time.
    Page(PageRequest),
}

/// The request for a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageRequest {
    created_after: DateTime<Utc>,
    /// Position in the ledger at which the page begins.
    from: usize,
    pub(super) limit: usize,
}

impl ListQuery {
    /// Validates the query. Returns the validated request, or the validation error.
    pub(super) fn validate(self) -> Result<ListRequest, &'static str> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err("limit must be from 1 to 100");
        }
        match (self.reference, self.created_after) {
            (Some(reference), None) if self.cursor.is_none() && self.limit.is_none() => {
                Ok(ListRequest::ByReference(reference))
            }
            (None, Some(created_after)) => {
                let from =
                    self.cursor.as_deref().map_or(Some(0), parse_cursor).ok_or("the cursor is invalid")?;
                Ok(ListRequest::Page(PageRequest { created_after, from, limit }))
            }
            _ => Err(
                "either reference or created_after is required; only created_after allows cursor and limit",
            ),
        }
    }
}

/// Returns the cursor of the page that begins at this position.
fn cursor(position: usize) -> String {
    format!("at_{position}")
}

fn parse_cursor(cursor: &str) -> Option<usize> {
    cursor.strip_prefix("at_")?.parse().ok()
}

/// The faults of one page.
#[derive(Debug, Clone, Default)]
pub(super) struct PageFaults {
    pub(super) lost: bool,
    pub(super) repeats_last_entry: bool,
    pub(super) reordered: bool,
    /// One flag per entry: true if the entry is omitted.
    pub(super) omitted: Vec<bool>,
}

/// An object with its time of creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ListedObject<T> {
    #[serde(flatten)]
    object: T,
    created: DateTime<Utc>,
}

/// A page of objects, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Page<T> {
    data: Vec<ListedObject<T>>,
    next_cursor: Option<String>,
}

/// Returns a page of the ledger's charges or refunds. `created` has the time of creation of each object, and `delay` is
/// the time for which a new object is missing.
pub(super) fn page<T: Clone>(
    objects: &[T],
    created: &[DateTime<Utc>],
    request: &PageRequest,
    delay: TimeDelta,
    faults: &PageFaults,
) -> Page<T> {
    let visible_until = Utc::now() - delay;
    let mut listed = objects
        .iter()
        .zip(created)
        .enumerate()
        .skip(request.from)
        .filter(|(_, (_, created))| **created > request.created_after && **created <= visible_until);
    let found: Vec<_> = listed.by_ref().take(request.limit).collect();
    let next_cursor = listed.next().and(found.last()).map(|(position, _)| cursor(position + 1));

    let entry =
        |(object, created): (&T, &DateTime<Utc>)| ListedObject { object: object.clone(), created: *created };
    let repeated = request.from.checked_sub(1).filter(|_| faults.repeats_last_entry);
    let repeated = repeated.and_then(|last| Some(entry((objects.get(last)?, created.get(last)?))));
    let omitted = faults.omitted.iter().copied().chain(std::iter::repeat(false));
    let present =
        found.into_iter().zip(omitted).filter(|(_, omitted)| !omitted).map(|((_, found), _)| entry(found));
    let mut data: Vec<_> = repeated.into_iter().chain(present).filter(|_| !faults.lost).collect();
    if faults.reordered {
        data.reverse();
    }
    Page { data, next_cursor }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists the objects 0 to 4, which were created one second apart.
    fn list(query: &str, faults: &PageFaults) -> (Vec<usize>, Option<String>) {
        let objects: Vec<_> = (0..5_usize).collect();
        let created: Vec<_> = (0..5).map(|second| start() + TimeDelta::seconds(second)).collect();
        let query: ListQuery = serde_json::from_str(query).unwrap();
        let Ok(ListRequest::Page(request)) = query.validate() else {
            panic!("the query does not request a page")
        };
        let page = page(&objects, &created, &request, TimeDelta::zero(), faults);
        (page.data.into_iter().map(|listed| listed.object).collect(), page.next_cursor)
    }

    fn start() -> DateTime<Utc> {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    const ALL: &str = r#"{"created_after":"2025-12-31T00:00:00Z"}"#;
    const FIRST_TWO: &str = r#"{"created_after":"2025-12-31T00:00:00Z","limit":2}"#;
    const NEXT_TWO: &str = r#"{"created_after":"2025-12-31T00:00:00Z","limit":2,"cursor":"at_2"}"#;
    const LAST: &str = r#"{"created_after":"2025-12-31T00:00:00Z","limit":2,"cursor":"at_4"}"#;

    #[test]
    fn a_page_continues_where_the_previous_one_ended() {
        let none = PageFaults::default();
        assert_eq!(list(ALL, &none), (vec![0, 1, 2, 3, 4], None));
        assert_eq!(list(FIRST_TWO, &none), (vec![0, 1], Some("at_2".to_owned())));
        assert_eq!(list(NEXT_TWO, &none), (vec![2, 3], Some("at_4".to_owned())));
        assert_eq!(list(LAST, &none), (vec![4], None));
        let later = r#"{"created_after":"2026-01-01T00:00:02Z"}"#;
        assert_eq!(list(later, &none), (vec![3, 4], None));
    }

    #[test]
    fn each_fault_changes_a_page_and_not_its_cursor() {
        let next = Some("at_4".to_owned());
        let lost = PageFaults { lost: true, ..PageFaults::default() };
        assert_eq!(list(NEXT_TWO, &lost), (vec![], next.clone()));
        let repeated = PageFaults { repeats_last_entry: true, ..PageFaults::default() };
        assert_eq!(list(NEXT_TWO, &repeated), (vec![1, 2, 3], next.clone()));
        let reordered = PageFaults { reordered: true, ..PageFaults::default() };
        assert_eq!(list(NEXT_TWO, &reordered), (vec![3, 2], next.clone()));
        let omitted = PageFaults { omitted: vec![false, true], ..PageFaults::default() };
        assert_eq!(list(NEXT_TWO, &omitted), (vec![2], next));
    }

    #[test]
    fn a_query_that_mixes_both_forms_is_invalid() {
        for query in [
            "{}",
            r#"{"cursor":"at_0"}"#,
            r#"{"reference":"00000000-0000-0000-0000-000000000000","created_after":"2026-01-01T00:00:00Z"}"#,
            r#"{"reference":"00000000-0000-0000-0000-000000000000","limit":1}"#,
            r#"{"created_after":"2026-01-01T00:00:00Z","limit":0}"#,
            r#"{"created_after":"2026-01-01T00:00:00Z","limit":101}"#,
            r#"{"created_after":"2026-01-01T00:00:00Z","cursor":"at_x"}"#,
            r#"{"created_after":"2026-01-01T00:00:00Z","cursor":""}"#,
        ] {
            assert!(serde_json::from_str::<ListQuery>(query).unwrap().validate().is_err(), "{query}");
        }
    }
}
