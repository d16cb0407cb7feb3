// Wraps 32 random bytes with Claviger and unwraps them again.
//
//	client HOST:PORT KEY CA CERTIFICATE PRIVATE_KEY
//	client unix:/run/claviger/claviger.sock KEY
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	// protoc -I proto --go_out=. --go-grpc_out=. claviger/v1/claviger.proto, with
	// Mclaviger/v1/claviger.proto=example.org/claviger-client/clavigerv1 and
	// module=example.org/claviger-client as options of both
	"example.org/claviger-client/clavigerv1"
)

const deadline = 10 * time.Second

func connect(target string, files []string) (*grpc.ClientConn, error) {
	serviceConfig, err := os.ReadFile(envOr("CLAVIGER_SERVICE_CONFIG", "../service-config.json"))
	if err != nil {
		return nil, err
	}
	transport := insecure.NewCredentials() // a Unix socket: the daemon knows this program by its uid
	if !strings.HasPrefix(target, "unix:") {
		if transport, err = mutualTLS(files[0], files[1], files[2]); err != nil {
			return nil, err
		}
	}
	return grpc.NewClient(target, grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(string(serviceConfig)))
}

func mutualTLS(ca, certificate, privateKey string) (credentials.TransportCredentials, error) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", ca)
	}
	pair, err := tls.LoadX509KeyPair(certificate, privateKey)
	if err != nil {
		return nil, err
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{pair},
	}), nil
}

// explain tells what the details of a status say: the field that is wrong, when to try again.
func explain(err error) string {
	failure := status.Convert(err)
	said := []string{fmt.Sprintf("%v: %s", failure.Code(), failure.Message())}
	for _, detail := range failure.Details() {
		switch detail := detail.(type) {
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				said = append(said, fmt.Sprintf("field %s: %s", violation.Field, violation.Description))
			}
		case *errdetails.RetryInfo:
			said = append(said, fmt.Sprintf("try again in %d ms", detail.RetryDelay.AsDuration().Milliseconds()))
		}
	}
	return strings.Join(said, "; ")
}

func main() {
	log.SetFlags(0)
	target, key := os.Args[1], os.Args[2]
	connection, err := connect(target, os.Args[3:])
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	keys := clavigerv1.NewKeyServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	// Your own id is recorded beside the daemon's.
	ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", "order-66")

	material := make([]byte, 32)
	rand.Read(material)
	wrapped, err := keys.Wrap(ctx, &clavigerv1.WrapRequest{Key: key, KeyMaterial: material})
	if err != nil {
		log.Fatal(explain(err))
	}
	var header metadata.MD
	unwrapped, err := keys.Unwrap(ctx, &clavigerv1.UnwrapRequest{Key: key, Wrapped: wrapped.Wrapped},
		grpc.Header(&header))
	if err != nil {
		log.Fatal(explain(err))
	}
	if !bytes.Equal(unwrapped.KeyMaterial, material) {
		log.Fatal("other bytes came back")
	}
	fmt.Printf("unwrapped %d bytes, request id %s\n", len(unwrapped.KeyMaterial), header.Get("x-request-id")[0])
}

func envOr(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
