//! The charts, figures and first trace of notes on the console, and the end of the terminal's status line.
use std::collections::BTreeMap;

use crate::console::panels::{Panel, or_dash};

/// The charts of notes on the console.
pub(crate) const PANELS: &[Panel] = &[Panel {
    id: "created",
    title: "Created notes",
    unit: "/min",
    lines: &[("notes", "60 * sum(rate(notes_created_total[WINDOW]))")],
}];

/// The figures of notes: the name of each, and its `PromQL` query.
pub(crate) const FIGURES: &[(&str, &str)] = &[("created", "sum(notes_created_total)")];

/// Query for the id of the trace that `/traces/first` shows: the trace of the first note created since `$1`, the start
/// of the console.
pub(crate) const FIRST_TRACE: &str = "
    select trace_id
    from audit_events
    where resource = 'notes' and action = 'create' and recorded_at >= $1 and trace_id is not null
    order by sequence
    limit 1";

/// Returns the end of the terminal's status line.
pub(crate) fn status_line(figures: &BTreeMap<&str, f64>) -> String {
    format!("{} notes", or_dash(figures.get("created").copied(), 0))
}
