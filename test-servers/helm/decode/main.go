// Decode reads manifests (YAML documents) from standard input and decodes each strictly into the type
// that the API server would: an unknown or doubled field, a wrong type or an unknown kind is an error.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

func main() {
	count, err := decode(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("%d manifests decoded\n", count)
}

func decode(input io.Reader) (int, error) {
	for _, add := range []func() error{
		func() error { return certmanager.AddToScheme(scheme.Scheme) },
		func() error { return monitoring.AddToScheme(scheme.Scheme) },
	} {
		if err := add(); err != nil {
			return 0, err
		}
	}
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	documents := yaml.NewYAMLReader(bufio.NewReader(input))
	count := 0
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			if count == 0 {
				return 0, errors.New("no manifest on standard input")
			}
			return count, nil
		}
		if err != nil {
			return count, err
		}
		if blank(document) {
			continue
		}
		if _, kind, err := decoder.Decode(document, nil, nil); err != nil {
			return count, fmt.Errorf("manifest %d (%v): %w\n%s", count+1, kind, err, document)
		}
		count++
	}
}

// blank tells whether a document holds comments and blanks only.
func blank(document []byte) bool {
	var value any
	return yaml.Unmarshal(document, &value) == nil && value == nil
}
