//! The metrics of notes.
platform::metrics! {
    /// Notes created.
    pub(super) static CREATED: counter = "notes_created_total";
}
