// Command probe is what the test pods run: it holds a pod's namespaces open, waits, or makes one
// request from inside the cluster. It is static, so that its image is this one file.
package main

import (
	"bytes"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const usage = `probe                 wait for SIGTERM (what a pause container does)
probe request [-H 'name: value']... [-d BODY] [-timeout 30s] [-retry 0s] [-certificate DIR] URL
                      print the answer's body; exit 1 unless its status is 2xx. https believes whoever
                      answers, and shows the tls.crt and tls.key of DIR`

func main() {
	if len(os.Args) < 2 {
		wait()
		return
	}
	switch os.Args[1] {
	case "request":
		if err := request(os.Args[2:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
}

// wait reaps orphans, which in a shared process namespace come to the first process, until it is told to stop.
func wait() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

type headers []string

func (h *headers) String() string     { return strings.Join(*h, ", ") }
func (h *headers) Set(v string) error { *h = append(*h, v); return nil }

func request(args []string, out io.Writer) error {
	var extra headers
	flags := flag.NewFlagSet("request", flag.ExitOnError)
	flags.Var(&extra, "H", "a header, name: value")
	body := flags.String("d", "", "a body; makes the request a POST of JSON")
	timeout := flags.Duration("timeout", 30*time.Second, "for one attempt, body included")
	certificate := flags.String("certificate", "", "a folder with the tls.crt and tls.key to show")
	retry := flags.Duration("retry", 0, "go on trying this long while there is no connection or a 5xx")
	_ = flags.Parse(args)
	if flags.NArg() != 1 {
		return fmt.Errorf("%s", usage)
	}
	trust := &tls.Config{InsecureSkipVerify: true} // It is the server's refusals that are tested.
	if *certificate != "" {
		shown, err := tls.LoadX509KeyPair(*certificate+"/tls.crt", *certificate+"/tls.key")
		if err != nil {
			return err
		}
		trust.Certificates = []tls.Certificate{shown}
	}
	client := http.Client{Timeout: *timeout, Transport: &http.Transport{TLSClientConfig: trust}}
	end := time.Now().Add(*retry)
	for {
		again, err := attempt(&client, flags.Arg(0), *body, extra, out)
		if err == nil || !again || time.Now().After(end) {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func attempt(client *http.Client, url, body string, extra headers, out io.Writer) (again bool, err error) {
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	r, err := http.NewRequest(method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return false, err
	}
	if body != "" {
		r.Header.Set("content-type", "application/json")
	}
	for _, h := range extra {
		name, value, found := strings.Cut(h, ":")
		if !found {
			return false, fmt.Errorf("header %q has no colon", h)
		}
		r.Header.Set(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	answer, err := client.Do(r)
	if err != nil {
		return true, err
	}
	defer answer.Body.Close()
	got, err := io.ReadAll(answer.Body)
	if err != nil {
		return true, err
	}
	if answer.StatusCode/100 != 2 {
		return answer.StatusCode >= 500, fmt.Errorf("%s answered %s: %s", url, answer.Status, got)
	}
	_, err = out.Write(got)
	return false, err
}
