// Wraps 32 random bytes with Claviger and unwraps them again.
//
// Client HOST:PORT KEY CA CERTIFICATE PRIVATE_KEY
// Client unix:/run/claviger/claviger.sock KEY
//
// Packages: Grpc.Net.Client, Google.Protobuf, Grpc.Tools, Grpc.StatusProto; in the project file:
// <Protobuf Include="claviger/v1/claviger.proto" GrpcServices="Client" ProtoRoot="proto" />

using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using Claviger.V1;
using Google.Protobuf;
using Google.Rpc;
using Grpc.Core;
using Grpc.Net.Client;
using Grpc.Net.Client.Configuration;

var (target, key, files) = (args[0], args[1], args[2..]);
using var channel = Connect(target, files);
var keys = new KeyService.KeyServiceClient(channel);
var mine = new Metadata { { "x-request-id", "order-66" } }; // recorded beside the daemon's own
try
{
    var material = RandomNumberGenerator.GetBytes(32);
    var deadline = DateTime.UtcNow.AddSeconds(10);
    var wrapped = await keys.WrapAsync(
        new WrapRequest { Key = key, KeyMaterial = ByteString.CopyFrom(material) }, mine, deadline);
    var call = keys.UnwrapAsync(
        new UnwrapRequest { Key = key, Wrapped = wrapped.Wrapped }, mine, deadline);
    var unwrapped = (await call).KeyMaterial.ToByteArray();
    if (!CryptographicOperations.FixedTimeEquals(unwrapped, material)) throw new InvalidDataException();
    var requestId = (await call.ResponseHeadersAsync).GetValue("x-request-id");
    Console.WriteLine($"unwrapped {unwrapped.Length} bytes, request id {requestId}");
}
catch (RpcException error)
{
    Console.Error.WriteLine(Explain(error));
    return 1;
}
return 0;

static GrpcChannel Connect(string target, string[] files)
{
    var handler = new SocketsHttpHandler
    {
        EnableMultipleHttp2Connections = true,
        KeepAlivePingDelay = TimeSpan.FromSeconds(30),
    };
    var options = new GrpcChannelOptions { HttpHandler = handler, ServiceConfig = Retries() };
    if (target.StartsWith("unix:"))
    {
        var endpoint = new UnixDomainSocketEndPoint(target["unix:".Length..]);
        handler.ConnectCallback = async (_, cancelled) =>
        {
            var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            await socket.ConnectAsync(endpoint, cancelled);
            return new NetworkStream(socket, ownsSocket: true);
        };
        return GrpcChannel.ForAddress("http://localhost", options);
    }
    var trust = new X509ChainPolicy
    {
        TrustMode = X509ChainTrustMode.CustomRootTrust,
        RevocationMode = X509RevocationMode.NoCheck,
    };
    trust.CustomTrustStore.ImportFromPemFile(files[0]);
    handler.SslOptions = new SslClientAuthenticationOptions
    {
        ClientCertificates = [X509Certificate2.CreateFromPemFile(files[1], files[2])],
        CertificateChainPolicy = trust,
    };
    return GrpcChannel.ForAddress($"https://{target}", options);
}

// As ../service-config.json: Grpc.Net.Client takes it as objects.
static ServiceConfig Retries()
{
    var policy = new RetryPolicy
    {
        MaxAttempts = 5,
        InitialBackoff = TimeSpan.FromSeconds(0.2),
        MaxBackoff = TimeSpan.FromSeconds(2),
        BackoffMultiplier = 2,
        RetryableStatusCodes = { StatusCode.Unavailable },
    };
    var methods = new MethodConfig { RetryPolicy = policy };
    foreach (var name in new[] { "Wrap", "Unwrap", "UnwrapBatch", "Verify", "GetKey", "ListKeys" })
        methods.Names.Add(new MethodName { Service = "claviger.v1.KeyService", Method = name });
    return new ServiceConfig { MethodConfigs = { methods } };
}

// What the details of a status say: the field that is wrong, when to try again.
static string Explain(RpcException error)
{
    var said = new List<string> { $"{error.StatusCode}: {error.Status.Detail}" };
    var status = error.GetRpcStatus();
    if (status?.GetDetail<BadRequest>() is { } bad)
        said.AddRange(bad.FieldViolations.Select(v => $"field {v.Field}: {v.Description}"));
    if (status?.GetDetail<RetryInfo>() is { } retry)
        said.Add($"try again in {retry.RetryDelay.ToTimeSpan().TotalMilliseconds} ms");
    return string.Join("; ", said);
}
