"""Before it is paid for: what a run needs of memory, network and time on devices that are not there."""
