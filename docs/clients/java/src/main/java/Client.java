import claviger.v1.Claviger.UnwrapRequest;
import claviger.v1.Claviger.WrapRequest;
import claviger.v1.KeyServiceGrpc;
import com.google.gson.Gson;
import com.google.protobuf.ByteString;
import com.google.rpc.BadRequest;
import com.google.rpc.RetryInfo;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.unix.DomainSocketAddress;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.SecureRandom;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;

/**
 * Wraps 32 random bytes with Claviger and unwraps them again.
 *
 * <p>Client HOST:PORT KEY CA CERTIFICATE PRIVATE_KEY, or Client unix:/run/claviger/claviger.sock KEY
 */
public class Client {
  private static final int DEADLINE_S = 10;
  private static final Metadata.Key<String> REQUEST_ID =
      Metadata.Key.of("x-request-id", Metadata.ASCII_STRING_MARSHALLER);

  static NettyChannelBuilder builder(String[] args) throws Exception {
    String target = args[0];
    if (target.startsWith("unix:")) {
      return NettyChannelBuilder.forAddress(new DomainSocketAddress(target.substring("unix:".length())))
          .channelType(EpollDomainSocketChannel.class)
          .eventLoopGroup(new EpollEventLoopGroup(1))
          .overrideAuthority("localhost")
          .usePlaintext();
    }
    var credentials = TlsChannelCredentials.newBuilder()
        .trustManager(new File(args[2]))
        .keyManager(new File(args[3]), new File(args[4])) // PKCS#8
        .build();
    return NettyChannelBuilder.forTarget(target, credentials);
  }

  /** What the details of a status say: the field that is wrong, when to try again. */
  static String explain(StatusRuntimeException error) throws Exception {
    var said = new StringBuilder(error.getStatus().getCode() + ": " + error.getStatus().getDescription());
    var status = StatusProto.fromThrowable(error);
    for (var detail : status == null ? java.util.List.<com.google.protobuf.Any>of() : status.getDetailsList()) {
      if (detail.is(BadRequest.class)) {
        for (var violation : detail.unpack(BadRequest.class).getFieldViolationsList()) {
          said.append("; field ").append(violation.getField()).append(": ").append(violation.getDescription());
        }
      } else if (detail.is(RetryInfo.class)) {
        var delay = detail.unpack(RetryInfo.class).getRetryDelay();
        said.append("; try again in ").append(delay.getSeconds() * 1000 + delay.getNanos() / 1_000_000).append(" ms");
      }
    }
    return said.toString();
  }

  public static void main(String[] args) throws Exception {
    String file = System.getenv().getOrDefault("CLAVIGER_SERVICE_CONFIG", "../service-config.json");
    Map<?, ?> serviceConfig = new Gson().fromJson(Files.readString(Path.of(file)), Map.class);
    @SuppressWarnings("unchecked")
    ManagedChannel channel =
        builder(args).defaultServiceConfig((Map<String, ?>) serviceConfig).enableRetry().build();
    var mine = new Metadata();
    mine.put(REQUEST_ID, "order-66"); // your own id is recorded beside the daemon's
    var headers = new AtomicReference<Metadata>();
    var keys = KeyServiceGrpc.newBlockingStub(channel).withInterceptors(
        MetadataUtils.newAttachHeadersInterceptor(mine),
        MetadataUtils.newCaptureMetadataInterceptor(headers, new AtomicReference<>()));
    int code = 0;
    try {
      byte[] random = new byte[32];
      new SecureRandom().nextBytes(random);
      var material = ByteString.copyFrom(random);
      var wrapped = keys.withDeadlineAfter(DEADLINE_S, TimeUnit.SECONDS)
          .wrap(WrapRequest.newBuilder().setKey(args[1]).setKeyMaterial(material).build());
      var unwrapped = keys.withDeadlineAfter(DEADLINE_S, TimeUnit.SECONDS)
          .unwrap(UnwrapRequest.newBuilder().setKey(args[1]).setWrapped(wrapped.getWrapped()).build());
      if (!unwrapped.getKeyMaterial().equals(material)) throw new IllegalStateException("other bytes came back");
      System.out.println("unwrapped " + unwrapped.getKeyMaterial().size() + " bytes, request id "
          + headers.get().get(REQUEST_ID));
    } catch (StatusRuntimeException error) {
      System.err.println(explain(error));
      code = 1;
    }
    channel.shutdownNow();
    System.exit(code);
  }
}
