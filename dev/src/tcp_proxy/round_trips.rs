//! Counts round trips to PostgreSQL in the bytes of a connection. In each round trip (a statement, `begin`, a ping of
//! the pool) the driver waits for one `ReadyForQuery` (PostgreSQL's documentation, "Message Flow").
use std::sync::atomic::{AtomicUsize, Ordering};

/// Type byte of a `ReadyForQuery`.
const READY_FOR_QUERY: u8 = b'Z';

/// Response of a server without TLS to a request for TLS: this single byte, not a message.
const NO_TLS: u8 = b'N';

/// Size of a message's header in bytes: the type and the length. The length includes itself but not the type.
const HEADER_BYTES: usize = 5;

/// Parser of a server's output on one connection, piece by piece.
#[derive(Debug, Default)]
pub(super) struct RoundTripCounter {
    has_started: bool,
    header: Vec<u8>,
    /// Remaining bytes of the current message.
    remaining: usize,
}

impl RoundTripCounter {
    /// Counts the round trips that end in this piece.
    pub(super) fn count(&mut self, mut piece: &[u8], round_trips: &AtomicUsize) {
        if !self.has_started && !piece.is_empty() {
            self.has_started = true;
            // A server never begins with a `NoticeResponse`, which has the same type byte.
            piece = piece.strip_prefix(&[NO_TLS]).unwrap_or(piece);
        }
        while !piece.is_empty() {
            let (skipped, next) = piece.split_at(self.remaining.min(piece.len()));
            self.remaining -= skipped.len();
            let (header, next) = next.split_at((HEADER_BYTES - self.header.len()).min(next.len()));
            self.header.extend_from_slice(header);
            if let [kind, length @ ..] = self.header.as_slice()
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                if *kind == READY_FOR_QUERY {
                    round_trips.fetch_add(1, Ordering::Relaxed);
                }
                self.remaining =
                    usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX).saturating_sub(4);
                self.header.clear();
            }
            piece = next;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by a panic")]
mod tests {
    use super::*;

    fn message(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len() + 4).unwrap();
        [&[kind], length.to_be_bytes().as_slice(), content].concat()
    }

    #[test]
    fn round_trips_are_counted_in_pieces_of_any_size() {
        let row = message(b'D', b"Z\0\0\0\x05Z, which is not a message");
        let ready = message(b'Z', b"I");
        let output =
            [b"N".to_vec(), message(b'R', &[0; 4]), ready.clone(), row, ready.clone(), ready].concat();
        for size in 1..=output.len() {
            let (mut counter, round_trips) = (RoundTripCounter::default(), AtomicUsize::new(0));
            output.chunks(size).for_each(|piece| counter.count(piece, &round_trips));
            assert_eq!(round_trips.into_inner(), 3, "in pieces of {size}");
        }
    }
}
