//! The calls that are served, and how often each was made.

use std::sync::atomic::{AtomicU64, Ordering};

/// Declares the calls as an enum, with their gRPC paths.
macro_rules! calls {
    ($($call:ident = $path:literal),+ $(,)?) => {
        /// A call that is served.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Call {
            $($call),+
        }

        impl Call {
            pub(super) const ALL: &[Self] = &[$(Self::$call),+];

            /// Its service and name.
            pub(super) fn name(self) -> &'static str {
                match self {
                    $(Self::$call => $path),+
                }
            }
        }
    };
}

calls! {
    Range = "KV/Range",
    Put = "KV/Put",
    DeleteRange = "KV/DeleteRange",
    Txn = "KV/Txn",
    Compact = "KV/Compact",
    Watch = "Watch/Watch",
    LeaseGrant = "Lease/LeaseGrant",
    LeaseRevoke = "Lease/LeaseRevoke",
    LeaseKeepAlive = "Lease/LeaseKeepAlive",
    LeaseTimeToLive = "Lease/LeaseTimeToLive",
    LeaseLeases = "Lease/LeaseLeases",
    MemberList = "Cluster/MemberList",
    Status = "Maintenance/Status",
    Alarm = "Maintenance/Alarm",
    Authenticate = "Auth/Authenticate",
}

impl Call {
    /// The call of this path, if it is served.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        let name = path.strip_prefix("/etcdserverpb.")?;
        Self::ALL.iter().copied().find(|call| call.name() == name)
    }

    /// Whether both sides send several messages.
    pub(super) fn streams(self) -> bool {
        matches!(self, Self::Watch | Self::LeaseKeepAlive)
    }
}

/// How often each call was made.
#[derive(Debug, Default)]
pub(super) struct Counters([AtomicU64; Call::ALL.len()]);

impl Counters {
    pub(super) fn count(&self, call: Call) {
        self.0[call as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn of(&self, call: Call) -> u64 {
        self.0[call as usize].load(Ordering::Relaxed)
    }
}
