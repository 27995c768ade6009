//! The monitoring stack with orders and payments.
mod drills;
mod outage;
mod promql_matches_prometheus;
