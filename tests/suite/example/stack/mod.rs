//! What watches the service, with orders and payments to watch.
mod drills;
mod outage;
mod promql_matches_prometheus;
