//! The call `Authenticate`. A connection handles one login at a time, and the answer to a wrong one is delayed, which
//! limits the rate of guesses. Other connections are not delayed, because a correct password is accepted at once.

use std::sync::Arc;

use etcd_client::proto::{PbAuthenticateRequest, PbAuthenticateResponse};
use tonic::{Status, body::Body, codegen::http};

use super::{api::Api, user::pause};

/// Performs a login after the connection's previous logins have been answered. The response to a failed login is
/// delayed.
pub(super) async fn in_turn(
    turn: &Arc<tokio::sync::Mutex<()>>,
    login: impl Future<Output = http::Response<Body>>,
) -> http::Response<Body> {
    let turn = Arc::clone(turn).lock_owned().await;
    let reply = login.await;
    // A response that consists only of a status has it in the header.
    if reply.headers().contains_key("grpc-status") {
        pause(turn).await;
    }
    reply
}

impl Api {
    pub(super) fn authenticate(
        &self,
        request: &PbAuthenticateRequest,
    ) -> Result<PbAuthenticateResponse, Status> {
        let token = self.authenticator.token(&request.name, &request.password)?;
        Ok(PbAuthenticateResponse { header: self.header(), token })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::{super::user::PAUSE, *};

    #[tokio::test(start_paused = true)]
    async fn connection_guesses_once_a_second_and_the_right_password_does_not_wait() {
        let turn = Arc::default();
        let began = Instant::now();
        let wrong = || in_turn(&turn, async { Status::invalid_argument("wrong").into_http() });
        tokio::join!(wrong(), wrong(), wrong());
        assert_eq!(began.elapsed(), PAUSE * 3);
        in_turn(&turn, async { http::Response::new(Body::empty()) }).await;
        assert_eq!(began.elapsed(), PAUSE * 3);
        // The client cancels its request, and sends the next one.
        let _ = tokio::time::timeout(PAUSE / 10, wrong()).await;
        wrong().await;
        assert_eq!(began.elapsed(), PAUSE * 5);
    }
}
