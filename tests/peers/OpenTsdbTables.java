import org.apache.hadoop.hbase.HBaseConfiguration;
import org.apache.hadoop.hbase.TableName;
import org.apache.hadoop.hbase.client.Admin;
import org.apache.hadoop.hbase.client.ColumnFamilyDescriptorBuilder;
import org.apache.hadoop.hbase.client.Connection;
import org.apache.hadoop.hbase.client.ConnectionFactory;
import org.apache.hadoop.hbase.client.TableDescriptorBuilder;

/** Makes the four tables of OpenTSDB in HBase, as create_table.sh of its sources does. */
public class OpenTsdbTables {
    private static final String[] TABLES = {"tsdb t", "tsdb-uid id name", "tsdb-tree t", "tsdb-meta name"};

    public static void main(String[] args) throws Exception {
        try (Connection connection = ConnectionFactory.createConnection(HBaseConfiguration.create());
             Admin admin = connection.getAdmin()) {
            for (String line : TABLES) {
                String[] words = line.split(" ");
                TableDescriptorBuilder table = TableDescriptorBuilder.newBuilder(TableName.valueOf(words[0]));
                for (int i = 1; i < words.length; i++) {
                    table.setColumnFamily(ColumnFamilyDescriptorBuilder.of(words[i]));
                }
                admin.createTable(table.build());
            }
        }
        System.exit(0);         // threads of the client would keep it alive
    }
}
