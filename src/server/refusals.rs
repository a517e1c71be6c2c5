//! Maps the engine's refusals to etcd's gRPC codes (`api/v3rpc/rpctypes/error.go`). The engine provides the texts.

use tonic::{Code, Status};

use crate::backend::memory::engine::Refusal;

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::Compacted { .. } | Refusal::FutureRevision | Refusal::TtlTooLarge => Code::OutOfRange,
            Refusal::LeaseNotFound(_) => Code::NotFound,
            Refusal::LeaseExists(_) => Code::FailedPrecondition,
            Refusal::NoSpace | Refusal::TooManyRequests => Code::ResourceExhausted,
            Refusal::EmptyKey
            | Refusal::KeyNotFound
            | Refusal::ValueProvided
            | Refusal::LeaseProvided
            | Refusal::DuplicateKey
            | Refusal::TooManyOperations
            | Refusal::TooLarge
            | Refusal::InvalidOrder => Code::InvalidArgument,
        };
        Self::new(code, refusal.to_string())
    }
}
