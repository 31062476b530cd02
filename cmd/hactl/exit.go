// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
)

// The exit codes.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNoLeader = 3
	exitUnknown  = 4
)

// usageError is a command line that makes no sense. Nothing was done.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// adviceError is an error that brings its own line on what to do next.
type adviceError struct {
	error
	advice string
}

func (e adviceError) Unwrap() error { return e.error }

// exitCode maps an error to the exit code of the process.
func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, hastate.ErrOutcomeUnknown):
		return exitUnknown
	case errors.Is(err, hastate.ErrNoLeader), errors.Is(err, hastate.ErrNotLeader):
		return exitNoLeader
	}
	return exitFailed
}

// grpcPrefix is what gRPC puts before the message of an error. The code is in the
// advice already.
var grpcPrefix = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// report writes two lines: what happened, and what to do next. command is the
// command line's path, for example "hactl group show".
func report(w io.Writer, command string, err error) {
	text := strings.Join(strings.Fields(inWords(command, err)), " ")
	_, _ = fmt.Fprintf(w, "error: %s\nnext: %s\n", text, advice(command, err))
}

// libraryWords are texts of the library for programs, and what they are here.
var libraryWords = strings.NewReplacer(
	": retry with the same request id, or read back", "",
	"give TLS credentials in DialOptions, or set AllowPlaintext", "give --tls-ca (and --tls-cert, --tls-key), or allow it with --plaintext",
)

// inWords is an error's text in the words of hactl.
func inWords(command string, err error) string {
	text := libraryWords.Replace(grpcPrefix.ReplaceAllString(err.Error(), ""))
	var conflict *hastate.ConflictError
	if errors.As(err, &conflict) && !strings.HasPrefix(command, "hactl session") {
		// Only sessions have revisions and offsets that can be given.
		text = strings.Replace(text, fmt.Sprintf(" (revision %d, end offset %d)", conflict.CurrentRevision, conflict.CurrentOffset), "", 1)
	}
	return text
}

func advice(command string, err error) string {
	var (
		usage     usageError
		own       adviceError
		notLeader *hastate.NotLeaderError
	)
	switch {
	case errors.As(err, &own):
		return own.advice
	case errors.As(err, &usage):
		return "see " + command + " --help"
	case errors.Is(err, hastate.ErrOutcomeUnknown):
		return "it may have been done: look at 'hactl status' and 'hactl history' (or 'hactl session get') before you repeat it"
	case errors.As(err, &notLeader) && notLeader.LeaderAddress != "":
		return "ask the leader: --endpoints " + notLeader.LeaderAddress
	case errors.Is(err, hastate.ErrNoLeader), errors.Is(err, hastate.ErrNotLeader):
		return "nothing was done: wait for an election and repeat; if it stays so, check with hactl status that a majority of the voters is up"
	case errors.Is(err, client.ErrNoPrimary):
		return "see which instances could take over with hactl status, and what was tried with hactl history"
	case errors.Is(err, hastate.ErrNotFound):
		return "check the name: hactl group list, hactl member list, hactl model list and hactl session list show what there is"
	case errors.Is(err, hastate.ErrAlreadyExists):
		return "choose another name or version: what exists is not changed"
	case errors.Is(err, hastate.ErrFenced):
		return "stop writing with this epoch; hactl primary shows the newest"
	case errors.Is(err, hastate.ErrConflict):
		return "nothing was done: read the record again and decide anew"
	case errors.Is(err, hastate.ErrLimit), errors.Is(err, hastate.ErrInvalid):
		return "nothing was done: correct the value, see " + command + " --help"
	case errors.Is(err, hastate.ErrPrecondition):
		return "nothing was done: see hactl status for what is in the way"
	case errors.Is(err, context.Canceled):
		return "it was interrupted: run it again when you like"
	}
	return adviceByCode(err)
}

// adviceByCode advises on errors that have no sentinel.
func adviceByCode(err error) string {
	switch status.Code(err) {
	case codes.Unavailable:
		return "check that a node runs at one of the endpoints (--endpoints, HACTL_ENDPOINTS or hactl context list), and the TLS flags"
	case codes.DeadlineExceeded:
		return "allow more time with --timeout, or try other nodes with --endpoints"
	case codes.PermissionDenied, codes.Unauthenticated:
		return "use a certificate with the role that this needs: --tls-cert and --tls-key"
	case codes.Unimplemented:
		return "the node does not know this call: compare hactl version with the version in hactl status"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "allow more time with --timeout, or try other nodes with --endpoints"
	}
	return "run it again with --verbose to see more"
}
