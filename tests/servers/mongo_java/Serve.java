import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.memory.MemoryBackend;
import java.util.List;

/** An independent server for MongoDB's protocol, in memory, on the port given (0: a free one). */
public class Serve {
    /** It says wire version 8 itself, one less than what drivers take, and does what 9 asks. */
    record Version(List<Integer> getVersionArray, int getWireVersion) implements MongoVersion {}

    public static void main(String[] arguments) {
        Version version = new Version(List.of(5, 0, 0), 9);
        MongoServer server = new MongoServer(new MemoryBackend().version(version));
        server.bind("127.0.0.1", Integer.parseInt(arguments[0]));
        ProcessHandle.current().parent().ifPresent(
                parent -> parent.onExit().thenRun(() -> System.exit(0)));
        System.out.println(server.getLocalAddress().getPort());
    }
}
