//! The monitoring stack with orders and payments.
mod outage;
mod promql_matches_prometheus;
