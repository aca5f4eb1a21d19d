"""The fault harness: make every system call go wrong, cut the power at every point, damage every byte.

    shim       LD_PRELOAD injector and recorder (shim.c), plans and counts
    workload   run a command under it; nothing outlives a run
    sweep      kill before, inside and after each call
    trace      a recorded run, and what was durable when
    content    what a file holds, sparse
    images     the directories that a power cut may leave
    explore    check the recovery of thousands of them
    flips      bits, bytes, lengths
    powercut   ext4 with its power cut, disks that fill up
    ledger     what the writers were told
    checks     the seven checks (pure)
    shards     forked workers whose death is a finding
    toy        a small store with bugs to switch on: how one knows that the harness sees anything

This package imports nothing, so that a process under test starts quickly; import the modules.
"""
