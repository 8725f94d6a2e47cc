//! Limits of the process: as many files as the system allows, and no core dumps, which would hold
//! health records.

/// Applies both; what fails is logged and left as it is.
pub(super) fn apply() {
    let files = raise_files();
    if let Some(files) = files {
        tracing::info!(files, "open files allowed");
    }
    set(libc::RLIMIT_CORE, libc::rlimit { rlim_cur: 0, rlim_max: 0 });
}

/// The soft limit of open files becomes the hard one.
fn raise_files() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writes for the length of the call.
    #[allow(unsafe_code)]
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if got != 0 {
        return None;
    }
    limit.rlim_cur = limit.rlim_max;
    set(libc::RLIMIT_NOFILE, limit);
    Some(limit.rlim_cur)
}

fn set(resource: libc::__rlimit_resource_t, limit: libc::rlimit) {
    // SAFETY: `limit` is valid for reads for the length of the call.
    #[allow(unsafe_code)]
    let set = unsafe { libc::setrlimit(resource, &raw const limit) };
    if set != 0 {
        tracing::warn!(error = %std::io::Error::last_os_error(), "a limit can't be set");
    }
}
