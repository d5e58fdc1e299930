"""What runs on the far side of the sandbox: the process that forks jailed children, and they.

`entropy_lab.train.rewards.sandbox` starts `zygote` with a bare interpreter that has none of the
packages of this one and none of its environment, so the modules here import the standard library
and one another (relatively) and nothing else.

    seccomp    which system calls a program may make
    landlock   which files it may open
    namespace  a file tree, a network and shared memory of its own
    layers     putting the layers on one process, and trying out which of them work here
    wire       values as JSON that needs no pickle and no eval
    serve      calls of a solution's functions, asked for over a channel
    check      assert-style tests, in a process that the solution is not in
    child      what a forked child does from fork to exit
    zygote     the fork server
"""
