import org.zeromq.SocketType;
import org.zeromq.ZContext;
import org.zeromq.ZMQ;

/** KIND bind|connect ENDPOINT [USER PASSWORD]: prints the last frame of each message as a line, until it is killed. */
public class JeromqReader {
    public static void main(String[] words) {
        ZMQ.Socket socket = new ZContext().createSocket(SocketType.valueOf(words[0]));
        socket.setHeartbeatIvl(200);
        socket.setHeartbeatTimeout(5000);
        if (words[0].equals("SUB"))
            socket.subscribe("stat");
        if (words.length > 3) {
            socket.setPlainUsername(words[3].getBytes());
            socket.setPlainPassword(words[4].getBytes());
        }
        if (words[1].equals("bind"))
            socket.bind(words[2]);
        else
            socket.connect(words[2]);
        System.out.println("ready");
        while (true) {
            String frame = socket.recvStr();
            if (!socket.hasReceiveMore())
                System.out.println(frame);
        }
    }
}
