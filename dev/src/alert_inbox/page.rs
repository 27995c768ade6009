//! The page: the time of the last heartbeat, and the latest alerts, newest first, with links to runbooks and
//! dashboards.
use std::fmt::Write as _;

use super::{InboxContents, ReceivedAlert};

const HEAD: &str = r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="refresh" content="5">
<title>Alerts</title>
<style>
  :root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
  body { margin: 2rem auto; max-width: 68rem; padding: 0 1rem }
  article { border-left: .4rem solid #999; margin: .8rem 0; padding: .2rem 1rem }
  .firing.critical { border-color: #d32f2f }
  .firing.warning { border-color: #f9a825 }
  .resolved { border-color: #2e7d32 }
  h2 { font-size: 1.05rem; margin: 0 }
  p { margin: .2rem 0 }
  time, .by { opacity: .7 }
</style>
<h1>Received alerts</h1>
"#;

pub(super) fn render(contents: &InboxContents) -> String {
    let mut html = HEAD.to_owned();
    let heartbeat = contents.heartbeat_at.map_or_else(
        || "No heartbeat from Alertmanager yet.".to_owned(),
        |at| format!("Last heartbeat from Alertmanager: {}.", at.format("%H:%M:%S")),
    );
    let _ = writeln!(html, "<p>{heartbeat} Times are UTC.</p>");
    if contents.alerts.is_empty() {
        html.push_str("<p>No alerts received.</p>\n");
    }
    for alert in &contents.alerts {
        html.push_str(&article(alert));
    }
    html
}

fn article(alert: &ReceivedAlert) -> String {
    let link = |url: &Option<String>, text| {
        url.as_ref()
            .filter(|url| url.starts_with("http://") || url.starts_with("https://"))
            .map(|url| format!(" <a href=\"{}\">{text}</a>", escape(url)))
            .unwrap_or_default()
    };
    format!(
        "<article class=\"{status} {severity}\"><h2>{status}: {name}</h2>\
         <p><time>{at}</time> <span class=\"by\">{severity}, from {source}</span></p>\
         <p>{summary}</p><p>{description}</p><p>{runbook}{dashboard}</p></article>\n",
        status = escape(&alert.status),
        severity = escape(&alert.severity),
        name = escape(&alert.name),
        at = alert.received_at.format("%Y-%m-%d %H:%M:%S"),
        source = escape(&alert.source),
        summary = escape(&alert.summary),
        description = escape(&alert.description),
        runbook = link(&alert.runbook_url, "runbook"),
        dashboard = link(&alert.dashboard_url, "dashboard"),
    )
}

/// Escapes external text, so that it is displayed and never becomes markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    #[test]
    fn alert_texts_are_never_markup() {
        let alert = ReceivedAlert {
            received_at: Utc::now(),
            source: "service".to_owned(),
            status: "firing".to_owned(),
            started_at: None,
            name: "<script>alert(1)</script>".to_owned(),
            severity: "warning\" onload=\"alert(1)".to_owned(),
            summary: String::new(),
            description: String::new(),
            runbook_url: Some("javascript:alert(1)".to_owned()),
            dashboard_url: Some("http://localhost:3000/d/service-overview".to_owned()),
        };
        let html = render(&InboxContents { alerts: [alert].into(), heartbeat_at: None });
        assert!(!html.contains("<script>") && !html.contains("\" onload") && !html.contains("javascript:"));
        assert!(
            html.contains("<a href=\"http://localhost:3000/d/service-overview\">dashboard</a>"),
            "{html}"
        );
    }
}
