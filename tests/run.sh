#!/bin/sh
# run.sh NAME COMMAND...   one check: its output goes to build/logs/NAME, its result to build/results/NAME.
#                          A command that ends with a line "N passed, N failed" counts by that, any other by its exit status.
# run.sh --sum NAME...     adds up all results; a NAME without one counts as failed.  The last line is "N passed, N failed"
mkdir -p build/logs build/results
if [ "$1" = --sum ]; then
    shift
    for name; do
        [ -s "build/results/$name" ] || { echo "$name: could not be built"; echo 0 1 > "build/results/$name"; }
    done
    cat build/results/* 2>/dev/null | awk '{ p += $1; f += $2 } END { printf "%d passed, %d failed\n", p, f; exit !(f == 0 && p > 0) }'
    exit
fi
name=$1; shift
before=$(date +%s)
"$@" > "build/logs/$name" 2>&1 < /dev/null
status=$?
counts=$(tail -n 1 "build/logs/$name" | sed -n 's/^\([0-9][0-9]*\) passed, \([0-9][0-9]*\) failed$/\1 \2/p')
[ -n "$counts" ] || counts=$([ $status = 0 ] && echo 1 0 || echo 0 1)
case "$counts" in *" 0") [ $status = 0 ] || counts="${counts% 0} 1";; esac
echo "$counts" > "build/results/$name"
case "$counts" in
*" 0") printf '%-40s %4d s  %s passed\n' "$name" $(($(date +%s) - before)) "${counts% 0}";;
*)     printf '%-40s %4d s  %s FAILED, exit status %d (build/logs/%s):\n' "$name" $(($(date +%s) - before)) "${counts#* }" $status "$name"
       tail -n 12 "build/logs/$name" | sed 's/^/    /';;
esac
