"""Open files of the process."""


def allow_open(count: int) -> None:
    """Lets the process have so many more files open, as far as the system allows it.

    1,024 is a usual limit, and a usual number of shards.
    """
    try:
        import resource  # not on Windows
    except ModuleNotFoundError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + count
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
