//! What watches the service, with orders and payments to watch.
mod outage;
mod promql_matches_prometheus;
