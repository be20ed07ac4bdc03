// The smallest Go application: it is built on each host, once for each release.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"runtime"
)

func main() {
	version := os.Getenv("BEANPOLE_VERSION")
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Hello from Go %s, version %s\n", runtime.Version(), version)
	})
	log.Fatal(http.ListenAndServe(":"+os.Getenv("PORT"), nil))
}
