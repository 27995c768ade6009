# Stops the processes that a parent process left running. Standard input is a pipe from the parent, with one command per
# line. The end of input means that the parent has ended. Commands:
#
#   process PID        registers a process group: TERM, and KILL after five seconds
#   server PID         registers a PostgreSQL server: fast shutdown, immediate shutdown after 10 s, KILL after 5 s more
#   forget PID         unregisters a process or server that has ended
#   remove DIRECTORY   registers a directory: deleted after all processes and servers have ended
#
# Servers are stopped after processes, so that a service can complete its writes.

trap '' HUP INT TERM

processes=
servers=
directories=

without() {
    for pid in $2; do
        [ "$pid" = "$1" ] || printf ' %s' "$pid"
    done
}

# Treats a zombie as ended, because in a container often no process reaps zombies. If `ps` lacks these options, `ps`
# prints nothing, and the process counts as alive.
any_alive() {
    for pid in "$@"; do
        kill -s 0 -- "$pid" || continue
        case $(ps -o stat= -p "${pid#-}") in
            Z*) ;;
            *) return 0 ;;
        esac
    done
    return 1
}

signal() {
    name=$1
    shift
    for pid in "$@"; do
        kill -s "$name" -- "$pid"
    done
}

# end FIRST LAST TENTHS PID…: sends signal FIRST, waits at most TENTHS tenths of a second, then sends signal LAST.
end() {
    first=$1
    last=$2
    tenths=$3
    shift 3
    signal "$first" "$@"
    # A process that is suspended by SIGSTOP receives the first signal only when it continues.
    signal CONT "$@"
    while [ "$tenths" -gt 0 ] && any_alive "$@"; do
        sleep 0.1
        tenths=$((tenths - 1))
    done
    signal "$last" "$@"
}

while read -r command argument; do
    case $command in
        process) processes="$processes -$argument" ;;
        server) servers="$servers $argument" ;;
        forget)
            processes=$(without "-$argument" "$processes")
            servers=$(without "$argument" "$servers")
            ;;
        remove) directories="$directories$argument
" ;;
    esac
done

# The lists are split into words intentionally.
# shellcheck disable=SC2086
{
    end TERM KILL 50 $processes
    end INT QUIT 100 $servers
    end QUIT KILL 50 $servers
}

printf '%s' "$directories" | while read -r directory; do
    rm -rf -- "$directory"
done
