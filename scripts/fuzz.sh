#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target of the module, or those whose names match a pattern, and says
# what each has done. A target that fails does not stop the others; the exit code is 1
# if any did, and its failing input is in the testdata/fuzz of its package.
#
#   FUZZTIME   for each target: a duration such as 20s or 10m, or executions such as 1000x
#   PARALLEL   inputs at a time
#   FUZZ       pattern for the names of targets
#   PKG        packages
set -u
time=${FUZZTIME:-20s} parallel=${PARALLEL:-2} pattern=${FUZZ:-.} packages=${PKG:-./...}

# A target that hangs is ended from outside: go's own limit does not hold for fuzzing.
case $time in
*m) limit=$((${time%m} * 60 + 120)) ;;
*s) limit=$((${time%s} + 120)) ;;
*x) limit=1800 ;;
*) echo "fuzz: FUZZTIME=$time: use whole seconds (20s) or minutes (10m), or executions (1000x)" >&2; exit 2 ;;
esac

log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM
# idle is for how many seconds the number of executions has not grown at the end.
idle() {
	awk '
	function seconds(t,   s, part) {
		for (; match(t, /^[0-9]+[hms]/); t = substr(t, RLENGTH + 1)) {
			part = substr(t, 1, RLENGTH)
			s += part * (part ~ /h/ ? 3600 : part ~ /m/ ? 60 : 1)
		}
		return s
	}
	/^fuzz: elapsed: / {
		now = seconds($3); n = 0
		for (i = 4; i < NF; i++) if ($i == "execs:") n = $(i + 1)
		if (n != was) { was = n; at = now }
	}
	END { print now - at + (was ? 0 : 31) }' "$log"
}

targets=0 total=0 failed=
for package in $(go list $packages); do
	names=$(go test -list '^Fuzz' "$package") || { echo "$names"; failed="$failed $package"; continue; }
	names=$(echo "$names" | grep '^Fuzz' | grep -E "$pattern")
	# Built before, so that the time of a target is its own.
	[ -z "$names" ] || go test -c -fuzz . -o /dev/null "$package" || { failed="$failed $package"; continue; }
	for name in $names; do
		# Making an input smaller is bounded: by default it may take a minute each, in
		# which nothing is tried.
		timeout -k 10 "$limit" go test "$package" -run '^$' -fuzz "^$name\$" -fuzztime "$time" \
			-fuzzminimizetime 100x -parallel "$parallel" >"$log" 2>&1
		code=$?
		last=$(grep '^fuzz: elapsed: .*execs: ' "$log" | tail -1)
		execs=$(echo "$last" | sed -n 's/.*execs: \([0-9]*\).*/\1/p')
		new=$(echo "$last" | sed -n 's/.*new interesting: \([0-9]*\).*/\1/p')
		targets=$((targets + 1)) total=$((total + ${execs:-0}))
		verdict=ok
		# Go ends an input that hangs with the time of its target, and calls that a pass.
		if [ $code -eq 0 ] && [ "$(idle)" -gt 30 ]; then
			code=1
			echo "nothing was tried for the last $(idle) s: an input hangs" >>"$log"
		fi
		if [ $code -ne 0 ]; then
			verdict=FAILED failed="$failed $package.$name"
			[ $code -eq 124 ] || [ $code -eq 137 ] && verdict="HUNG for ${limit}s"
		fi
		printf '%-6s %-24s %10s execs %5s new interesting  %s\n' "$verdict" "$name" "${execs:-0}" "${new:-0}" "$package"
		[ $code -eq 0 ] || grep -v '^fuzz: ' "$log" | tail -40
	done
done
echo "fuzz: $targets targets, $total executions, $time each${failed:+, FAILED:$failed}"
[ -z "$failed" ] && [ $targets -gt 0 ]
