//! The files of the page, which are part of the program, and the headers of all responses.

use axum::{
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};

const PAGE: &str = include_str!("assets/index.html");
const STYLE: &str = include_str!("assets/style.css");
/// The scripts. Each has one purpose, which its first lines say.
const SCRIPTS: &[(&str, &str)] = &[
    ("app.js", include_str!("assets/app.js")),
    ("feed.js", include_str!("assets/feed.js")),
    ("run.js", include_str!("assets/run.js")),
    ("timeline.js", include_str!("assets/timeline.js")),
    ("words.js", include_str!("assets/words.js")),
    ("world.js", include_str!("assets/world.js")),
];

/// The page may load its own files and nothing else, and no other page may show it or use it.
const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    // The page of a later release must not use the scripts of an earlier one.
    ("cache-control", "no-store"),
];

/// Adds the headers that every response has.
pub(super) async fn add_headers(mut response: Response) -> Response {
    for (name, value) in HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

pub(super) async fn page() -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE).into_response()
}

pub(super) async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE).into_response()
}

/// The script of this name.
pub(super) fn script(name: &str) -> Option<Response> {
    let (_, text) = SCRIPTS.iter().find(|(known, _)| *known == name)?;
    Some(([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], *text).into_response())
}
