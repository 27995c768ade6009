# Ends the processes that a parent process left running. Standard input is a pipe from the parent, with one order per
# line. The end of input means that the parent has ended, for any reason. Orders:
#
#   process PID        a process group: TERM, and KILL after five seconds
#   server PID         a PostgreSQL server: fast shutdown, immediate after ten seconds
#   forget PID         has ended and is no longer watched
#   remove DIRECTORY   is deleted after all processes and servers have ended
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

# Treats a zombie as ended, because in a container often no process reaps it. A `ps` without these options prints
# nothing, and then the process counts as alive.
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

# end FIRST LAST TENTHS PID…: sends signal FIRST, waits, then sends signal LAST.
end() {
    first=$1
    last=$2
    tenths=$3
    shift 3
    signal "$first" "$@"
    # A stopped process would receive the first signal only when it continues.
    signal CONT "$@"
    while [ "$tenths" -gt 0 ] && any_alive "$@"; do
        sleep 0.1
        tenths=$((tenths - 1))
    done
    signal "$last" "$@"
}

while read -r order subject; do
    case $order in
        process) processes="$processes -$subject" ;;
        server) servers="$servers $subject" ;;
        forget)
            processes=$(without "-$subject" "$processes")
            servers=$(without "$subject" "$servers")
            ;;
        remove) directories="$directories$subject
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
