//! The files of the page, embedded in the binary.
use axum::{
    extract::Path,
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
};

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// All files except the page itself: name, type and content.
const FILES: [(&str, &str, &str); 15] = [
    ("style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("main.js", SCRIPT, include_str!("page/main.js")),
    ("domain.js", SCRIPT, include_str!("../example/domain.js")),
    ("dom.js", SCRIPT, include_str!("page/dom.js")),
    ("format.js", SCRIPT, include_str!("page/format.js")),
    ("chart.js", SCRIPT, include_str!("page/chart.js")),
    ("now.js", SCRIPT, include_str!("page/now.js")),
    ("traces.js", SCRIPT, include_str!("page/traces.js")),
    ("waterfall.js", SCRIPT, include_str!("page/waterfall.js")),
    ("logs.js", SCRIPT, include_str!("page/logs.js")),
    ("alerts.js", SCRIPT, include_str!("page/alerts.js")),
    ("faults.js", SCRIPT, include_str!("page/faults.js")),
    ("standby.js", SCRIPT, include_str!("page/standby.js")),
    ("audit.js", SCRIPT, include_str!("page/audit.js")),
];

/// Returns the HTML page, which is the same for all views. The URL selects the view.
pub(super) async fn page() -> Html<&'static str> {
    Html(include_str!("page/index.html"))
}

pub(super) async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, media_type, content)) => ([(header::CONTENT_TYPE, *media_type)], *content).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
