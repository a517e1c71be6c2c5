//! The paths of the dashboard. The page and its events need access and, if there is one, the login. The second port for
//! probes and Prometheus has neither, and serves no events.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    extract::{Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state, map_response},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::watch;

use super::{
    access::{Access, Asked, Policy},
    assets,
    live::Live,
    login::{Answer, Login},
    overview::Overview,
    streams::{self, Streams},
};
use crate::{
    exposition::{CONTENT_TYPE, Page},
    lock::lock,
    settings::RunName,
    status::{counters::Accumulator, metrics::Picture},
};

/// The data of all requests.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) policy: Policy,
    pub(super) login: Option<Login>,
    pub(super) live: Arc<Live>,
    pub(super) overview: Arc<Overview>,
    pub(super) streams: Streams,
    /// The counters of runs since the dashboard started.
    pub(super) counters: Mutex<Accumulator>,
    pub(super) stopping: watch::Receiver<bool>,
}

/// The paths of the page.
pub(super) fn page(shared: &Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(assets::page))
        .route("/style.css", get(assets::style))
        .route("/scripts/{name}", get(script))
        .route("/events/runs", get(list_events))
        .route("/events/run/{tenant}/{run_id}", get(run_events))
        .merge(observed())
        .fallback(unknown)
        .layer(from_fn_with_state(Arc::clone(shared), guard))
        .layer(map_response(assets::add_headers))
        .with_state(Arc::clone(shared))
}

/// The paths of the second port.
pub(super) fn metrics_only(shared: &Arc<Shared>) -> Router {
    observed().fallback(unknown).layer(map_response(assets::add_headers)).with_state(Arc::clone(shared))
}

fn observed() -> Router<Arc<Shared>> {
    let ok = || async { "ok\n" };
    Router::new().route("/livez", get(ok)).route("/readyz", get(ok)).route("/metrics", get(metrics))
}

async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let refuse = |status: StatusCode, text: &'static str| (status, text).into_response();
    match shared.policy.judge(Asked::of(request.method(), request.uri(), request.headers())) {
        Access::Granted => {}
        Access::NotReadOnly => {
            let mut response =
                refuse(StatusCode::METHOD_NOT_ALLOWED, "the dashboard only serves GET and HEAD\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        Access::OtherHost => {
            let text = "the header `Host` names another host than this dashboard has; pass the name that you use with \
                        `--host`, or open the dashboard at the address on which it listens\n";
            return refuse(StatusCode::MISDIRECTED_REQUEST, text);
        }
        Access::OtherSite => {
            return refuse(StatusCode::FORBIDDEN, "the dashboard serves no requests of other sites\n");
        }
    }
    let answer = match &shared.login {
        Some(login) => login.check(request.headers()).await,
        None => Answer::Right,
    };
    match answer {
        Answer::Right => next.run(request).await,
        Answer::TooMany => refuse(StatusCode::TOO_MANY_REQUESTS, "too many wrong logins; try again later\n"),
        Answer::Required => {
            let mut response =
                refuse(StatusCode::UNAUTHORIZED, "log in with the user and the password of the dashboard\n");
            let scheme =
                HeaderValue::from_static("Basic realm=\"lattice-rdzv dashboard\", charset=\"UTF-8\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            response
        }
    }
}

async fn script(Path(name): Path<String>) -> Response {
    match assets::script(&name) {
        Some(script) => script,
        None => unknown().await,
    }
}

async fn unknown() -> Response {
    (StatusCode::NOT_FOUND, "known: / /metrics /livez /readyz\n").into_response()
}

async fn list_events(State(shared): State<Arc<Shared>>) -> Response {
    let Some(permit) = shared.streams.permit() else { return streams::refused() };
    streams::respond(permit, shared.overview.follow(), shared.stopping.clone())
}

async fn run_events(
    State(shared): State<Arc<Shared>>,
    Path((tenant, run_id)): Path<(String, String)>,
) -> Response {
    if !shared.live.source.has_tenant(&tenant) {
        return (StatusCode::NOT_FOUND, "this dashboard shows another tenant\n").into_response();
    }
    let Some(permit) = shared.streams.permit() else { return streams::refused() };
    let shown = shared.live.follow(&RunName { tenant, run_id });
    streams::respond(permit, shown, shared.stopping.clone())
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics_text(&shared).await).into_response()
}

/// The metrics of runs, and of the dashboard.
pub(super) async fn metrics_text(shared: &Shared) -> String {
    let read = shared.overview.picture().await;
    let mut page = Page::default();
    page.gauge("lattice_dashboard_event_streams", "Open pages of the dashboard.", shared.streams.open());
    page.gauge("lattice_dashboard_runs_followed", "Runs that the dashboard watches.", shared.live.count());
    let picture = read.as_ref().map(|(runs, unread)| Picture { runs, unread: *unread });
    // The counters include only whole pictures.
    let mut counters = lock(&shared.counters);
    page.into_text() + &counters.scrape(picture)
}
