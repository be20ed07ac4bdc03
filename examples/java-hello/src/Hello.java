import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;

/** The smallest Java application: the Buildfile makes its JAR on each host, once for each release. */
public class Hello {
    public static void main(String[] arguments) throws IOException {
        int port = Integer.parseInt(System.getenv("PORT"));
        String version = System.getenv("BEANPOLE_VERSION");
        String heap = Runtime.getRuntime().maxMemory() / (1 << 20) + " MiB";
        HttpServer server = HttpServer.create(new InetSocketAddress(port), 0);
        server.createContext("/", exchange -> {
            String text = "Hello from Java " + Runtime.version().feature() + " with " + heap + ", version " + version + "\n";
            byte[] body = text.getBytes(StandardCharsets.UTF_8);
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
