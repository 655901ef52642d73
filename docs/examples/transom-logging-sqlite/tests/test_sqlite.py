"""What is this driver's own: the bound on lines."""

from transom.contract.logging import Chunk, LogContainer, Query, Stream
from transom_logging_sqlite import Sqlite


def test_only_so_many_lines_are_kept(tmp_path):
    driver = Sqlite(options=Sqlite.Options(max_lines=3), root=tmp_path, run=tmp_path)
    container = LogContainer(id="1" * 64, name="box", directory=str(tmp_path))
    writer = driver.open(container=container)
    for number in range(5):
        writer.write([Chunk(stream=Stream.STDOUT, time=number, data=b"%d\n" % number)])
    writer.close(timeout=1)
    reader = driver.read(container=container, query=Query())
    assert [chunk.data for chunk in reader.next(timeout=1)] == [b"2\n", b"3\n", b"4\n"]
    reader.close()
