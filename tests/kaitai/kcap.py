# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from enum import IntEnum


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class Kcap(KaitaiStruct):
    """
    .. seealso::
       kcap.md
    """

    class Codec(IntEnum):
        stored = 0
        zstd = 1

    class Kind(IntEnum):
        file_header = 1
        source = 2
        schema = 3
        chunk = 4
        chunk_index = 5
        tail = 6
        state = 7
        loss = 8
        heartbeat = 9
        blob_block = 10
        blob_manifest = 11
        note = 12
        checkpoint = 13
        footer = 14
        recovery = 15
        segment = 16
        seal = 17

    class Presence(IntEnum):
        all = 0
        bitmap = 1
        numbers = 2

    class RangeForm(IntEnum):
        block = 0
        hole = 1
        missing = 2

    class SectionTag(IntEnum):
        pids = 1
        strings = 2

    class TypeClass(IntEnum):
        i64 = 1
        u64 = 2
        f64 = 3
        bool = 4
        str = 5
        bin = 6
        json = 7
        list = 16
        list_i64 = 17
        list_u64 = 18
        list_f64 = 19
        list_bool = 20
    def __init__(self, _io, _parent=None, _root=None):
        super(Kcap, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.records = []
        i = 0
        while not self._io.is_eof():
            self.records.append(Kcap.Record(self._io, self, self._root))
            i += 1



    def _fetch_instances(self):
        pass
        for i in range(len(self.records)):
            pass
            self.records[i]._fetch_instances()


    class BlobBlock(KaitaiStruct):
        """
        .. seealso::
           kcap.md 9.2
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.BlobBlock, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.len_decoded = self._io.read_u4le()
            self.codec = KaitaiStream.resolve_enum(Kcap.Codec, self._io.read_u1())
            self.zero = self._io.read_bytes(3)
            if not self.zero == b"\x00\x00\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00\x00\x00", self.zero, self._io, u"/types/blob_block/seq/2")
            self.mask = self._io.read_bytes(4)
            self._raw__raw_content = self._io.read_bytes_full()
            self._raw_content = KaitaiStream.process_xor_many(self._raw__raw_content, self.mask)
            _io__raw_content = KaitaiStream(BytesIO(self._raw_content))
            self.content = Kcap.BlobContent(_io__raw_content, self, self._root)


        def _fetch_instances(self):
            pass
            self.content._fetch_instances()


    class BlobContent(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.BlobContent, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.sha256 = self._io.read_bytes(32)
            self.data = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass


    class BlobManifest(KaitaiStruct):
        """
        .. seealso::
           kcap.md 9.4
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.BlobManifest, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.len_body = self._io.read_u4le()
            self.num_ranges = self._io.read_u4le()
            self.ranges = []
            for i in range(self.num_ranges):
                self.ranges.append(Kcap.BlobRange(self._io, self, self._root))

            self._raw_body = self._io.read_bytes(self.len_body)
            _io__raw_body = KaitaiStream(BytesIO(self._raw_body))
            self.body = Kcap.Body(_io__raw_body, self, self._root)


        def _fetch_instances(self):
            pass
            for i in range(len(self.ranges)):
                pass
                self.ranges[i]._fetch_instances()

            self.body._fetch_instances()


    class BlobRange(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.BlobRange, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.length = self._io.read_u8le()
            self.form = KaitaiStream.resolve_enum(Kcap.RangeForm, self._io.read_u4le())
            self.reason = self._io.read_u4le()
            self.sha256 = self._io.read_bytes(32)


        def _fetch_instances(self):
            pass


    class BloomBlock(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.BloomBlock, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.words = []
            for i in range(8):
                self.words.append(self._io.read_u4le())



        def _fetch_instances(self):
            pass
            for i in range(len(self.words)):
                pass



    class Body(KaitaiStruct):
        """JSON, perhaps compressed.
        
        .. seealso::
           kcap.md 4
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.Body, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.len_decoded = self._io.read_u4le()
            self.codec = KaitaiStream.resolve_enum(Kcap.Codec, self._io.read_u1())
            self.zero = self._io.read_bytes(3)
            if not self.zero == b"\x00\x00\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00\x00\x00", self.zero, self._io, u"/types/body/seq/2")
            self.data = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass


    class Bools(KaitaiStruct):
        def __init__(self, num_values, _io, _parent=None, _root=None):
            super(Kcap.Bools, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.num_values = num_values
            self._read()

        def _read(self):
            self.bitmap = self._io.read_bytes((self.num_values + 7) // 8)


        def _fetch_instances(self):
            pass


    class Checkpoint(KaitaiStruct):
        """
        .. seealso::
           kcap.md 8.3
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.Checkpoint, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.file_id = self._io.read_bytes(16)
            self.chain = self._io.read_bytes(32)
            self.ofs_previous = self._io.read_u8le()
            self.previous_hash = self._io.read_bytes(32)
            self.num_entries = self._io.read_u8le()
            self.table = []
            for i in range(self.num_entries):
                self.table.append(Kcap.TableEntry(self._io, self, self._root))

            self.totals = Kcap.SizedBody(self._io, self, self._root)


        def _fetch_instances(self):
            pass
            for i in range(len(self.table)):
                pass
                self.table[i]._fetch_instances()

            self.totals._fetch_instances()


    class Chunk(KaitaiStruct):
        """
        .. seealso::
           kcap.md 6.1
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.Chunk, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.len_directory = self._io.read_u4le()
            self._raw_directory = self._io.read_bytes(self.len_directory)
            _io__raw_directory = KaitaiStream(BytesIO(self._raw_directory))
            self.directory = Kcap.Directory(_io__raw_directory, self, self._root)
            self.directory_crc = self._io.read_u4le()
            self.frames = []
            for i in range(self.directory.num_columns):
                self.frames.append(self._io.read_bytes(self.directory.entries[i].len_stored))



        def _fetch_instances(self):
            pass
            self.directory._fetch_instances()
            for i in range(len(self.frames)):
                pass



    class ChunkIndex(KaitaiStruct):
        """
        .. seealso::
           kcap.md 8.1
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.ChunkIndex, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.number = self._io.read_u4le()
            self.num_rows = self._io.read_u4le()
            self.ts_min = self._io.read_s8le()
            self.ts_max = self._io.read_s8le()
            self.seq_min = self._io.read_s8le()
            self.seq_max = self._io.read_s8le()
            self.ord_min = self._io.read_s8le()
            self.ord_max = self._io.read_s8le()
            self.num_backward = self._io.read_u4le()
            self.num_timeless = self._io.read_u4le()
            self.num_types = self._io.read_u4le()
            self.num_state_rows = self._io.read_u4le()
            self.types = []
            for i in range(self.num_types):
                self.types.append(Kcap.EventType(self._io, self, self._root))

            self.padding = self._io.read_bytes((8 - self._io.pos() % 8) % 8)
            self.sections = []
            i = 0
            while not self._io.is_eof():
                self.sections.append(Kcap.Section(self._io, self, self._root))
                i += 1



        def _fetch_instances(self):
            pass
            for i in range(len(self.types)):
                pass
                self.types[i]._fetch_instances()

            for i in range(len(self.sections)):
                pass
                self.sections[i]._fetch_instances()



    class Column(KaitaiStruct):
        """The decoded bytes of a frame.
        
        .. seealso::
           kcap.md 6.3 to 6.8
        """
        def __init__(self, entry, num_rows, _io, _parent=None, _root=None):
            super(Kcap.Column, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.entry = entry
            self.num_rows = num_rows
            self._read()

        def _read(self):
            if self.entry.presence == Kcap.Presence.bitmap:
                pass
                self.bitmap = self._io.read_bytes((self.num_rows + 7) // 8)

            if self.entry.presence == Kcap.Presence.numbers:
                pass
                self.row_numbers = []
                for i in range(self.entry.num_present):
                    self.row_numbers.append(self._io.read_u2le())


            if self.is_list:
                pass
                self.lists = Kcap.Lists(self.entry.num_present, self._io, self, self._root)

            if (not (self.is_list)):
                pass
                self.values = Kcap.Values(int(self.entry.type_class), self.entry.encoding, self.entry.num_distinct, self.entry.num_present, self._io, self, self._root)



        def _fetch_instances(self):
            pass
            if self.entry.presence == Kcap.Presence.bitmap:
                pass

            if self.entry.presence == Kcap.Presence.numbers:
                pass
                for i in range(len(self.row_numbers)):
                    pass


            if self.is_list:
                pass
                self.lists._fetch_instances()

            if (not (self.is_list)):
                pass
                self.values._fetch_instances()


        @property
        def is_list(self):
            if hasattr(self, '_m_is_list'):
                return self._m_is_list

            self._m_is_list = int(self.entry.type_class) >= 16
            return getattr(self, '_m_is_list', None)


    class Directory(KaitaiStruct):
        """
        .. seealso::
           kcap.md 6.2
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.Directory, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.number = self._io.read_u4le()
            self.num_rows = self._io.read_u4le()
            self.ord_min = self._io.read_s8le()
            self.ord_max = self._io.read_s8le()
            self.ts_min = self._io.read_s8le()
            self.ts_max = self._io.read_s8le()
            self.num_schema = self._io.read_u4le()
            self.num_columns = self._io.read_u4le()
            self.tail_first = self._io.read_u8le()
            self.num_tails = self._io.read_u4le()
            self.zero = self._io.read_bytes(4)
            if not self.zero == b"\x00\x00\x00\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00\x00\x00\x00", self.zero, self._io, u"/types/directory/seq/10")
            self.entries = []
            for i in range(self.num_columns):
                self.entries.append(Kcap.Entry(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()



    class Entry(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.Entry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.column_id = self._io.read_u4le()
            self.type_class = KaitaiStream.resolve_enum(Kcap.TypeClass, self._io.read_u1())
            self.presence = KaitaiStream.resolve_enum(Kcap.Presence, self._io.read_u1())
            self.encoding = self._io.read_u1()
            self.zero = self._io.read_bytes(1)
            if not self.zero == b"\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00", self.zero, self._io, u"/types/entry/seq/4")
            self.num_present = self._io.read_u4le()
            self.base = self._io.read_u8le()
            self.num_distinct = self._io.read_u4le()
            self.ofs_frame = self._io.read_u4le()
            self.len_stored = self._io.read_u4le()
            self.len_decoded = self._io.read_u4le()
            self.crc = self._io.read_u4le()


        def _fetch_instances(self):
            pass


    class EventType(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.EventType, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.num_events = self._io.read_u4le()
            self.len_name = self._io.read_u2le()
            self.name = self._io.read_bytes(self.len_name)


        def _fetch_instances(self):
            pass


    class FileHeader(KaitaiStruct):
        """
        .. seealso::
           kcap.md 4.1
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.FileHeader, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.file_id = self._io.read_bytes(16)
            self.major = self._io.read_u2le()
            self.minor = self._io.read_u2le()
            self.zero = self._io.read_bytes(4)
            if not self.zero == b"\x00\x00\x00\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00\x00\x00\x00", self.zero, self._io, u"/types/file_header/seq/3")
            self.created_ns = self._io.read_s8le()
            self._raw_body = self._io.read_bytes_full()
            _io__raw_body = KaitaiStream(BytesIO(self._raw_body))
            self.body = Kcap.Body(_io__raw_body, self, self._root)


        def _fetch_instances(self):
            pass
            self.body._fetch_instances()


    class Floats(KaitaiStruct):
        def __init__(self, num_values, _io, _parent=None, _root=None):
            super(Kcap.Floats, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.num_values = num_values
            self._read()

        def _read(self):
            self.values = []
            for i in range(self.num_values):
                self.values.append(self._io.read_f8le())



        def _fetch_instances(self):
            pass
            for i in range(len(self.values)):
                pass



    class Footer(KaitaiStruct):
        """
        .. seealso::
           kcap.md 8.2
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.Footer, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.file_id = self._io.read_bytes(16)
            self.chain = self._io.read_bytes(32)
            self.num_entries = self._io.read_u8le()
            self.table = []
            for i in range(self.num_entries):
                self.table.append(Kcap.TableEntry(self._io, self, self._root))

            self.totals = Kcap.SizedBody(self._io, self, self._root)
            self.padding = self._io.read_bytes((self._io.size() - 24) - self._io.pos())
            self.ofs_footer = self._io.read_u8le()
            self.len_payload = self._io.read_u8le()
            self.end_magic = self._io.read_bytes(8)
            if not self.end_magic == b"\x4B\x43\x41\x50\x45\x4E\x44\x0A":
                raise kaitaistruct.ValidationNotEqualError(b"\x4B\x43\x41\x50\x45\x4E\x44\x0A", self.end_magic, self._io, u"/types/footer/seq/8")


        def _fetch_instances(self):
            pass
            for i in range(len(self.table)):
                pass
                self.table[i]._fetch_instances()

            self.totals._fetch_instances()


    class Heartbeat(KaitaiStruct):
        """
        .. seealso::
           kcap.md 4.6
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.Heartbeat, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.now_ns = self._io.read_s8le()
            self.num_events = self._io.read_u8le()
            if (not (self._io.is_eof())):
                pass
                self.body = Kcap.SizedBody(self._io, self, self._root)



        def _fetch_instances(self):
            pass
            if (not (self._io.is_eof())):
                pass
                self.body._fetch_instances()



    class Integers(KaitaiStruct):
        """
        .. seealso::
           kcap.md 6.5
        """
        def __init__(self, encoding, num_values, _io, _parent=None, _root=None):
            super(Kcap.Integers, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.encoding = encoding
            self.num_values = num_values
            self._read()

        def _read(self):
            if self.is_delta:
                pass
                self.first = self._io.read_u8le()

            if  ((self.width > 0) and ((not (self.is_planes)))) :
                pass
                self.offsets = []
                for i in range(self.num_offsets):
                    _on = self.width
                    if _on == 1:
                        pass
                        self.offsets.append(self._io.read_u1())
                    elif _on == 2:
                        pass
                        self.offsets.append(self._io.read_u2le())
                    elif _on == 3:
                        pass
                        self.offsets.append(self._io.read_u4le())
                    elif _on == 4:
                        pass
                        self.offsets.append(self._io.read_u8le())


            if self.is_planes:
                pass
                self.planes = []
                for i in range((2 if self.width == 2 else (4 if self.width == 3 else 8))):
                    self.planes.append(self._io.read_bytes(self.num_offsets))




        def _fetch_instances(self):
            pass
            if self.is_delta:
                pass

            if  ((self.width > 0) and ((not (self.is_planes)))) :
                pass
                for i in range(len(self.offsets)):
                    pass
                    _on = self.width
                    if _on == 1:
                        pass
                    elif _on == 2:
                        pass
                    elif _on == 3:
                        pass
                    elif _on == 4:
                        pass


            if self.is_planes:
                pass
                for i in range(len(self.planes)):
                    pass



        @property
        def is_delta(self):
            if hasattr(self, '_m_is_delta'):
                return self._m_is_delta

            self._m_is_delta = self.encoding & 16 != 0
            return getattr(self, '_m_is_delta', None)

        @property
        def is_divided(self):
            if hasattr(self, '_m_is_divided'):
                return self._m_is_divided

            self._m_is_divided = self.encoding & 32 != 0
            return getattr(self, '_m_is_divided', None)

        @property
        def is_planes(self):
            if hasattr(self, '_m_is_planes'):
                return self._m_is_planes

            self._m_is_planes = self.encoding & 64 != 0
            return getattr(self, '_m_is_planes', None)

        @property
        def num_offsets(self):
            if hasattr(self, '_m_num_offsets'):
                return self._m_num_offsets

            self._m_num_offsets = (self.num_values - 1 if self.is_delta else self.num_values)
            return getattr(self, '_m_num_offsets', None)

        @property
        def width(self):
            if hasattr(self, '_m_width'):
                return self._m_width

            self._m_width = self.encoding & 15
            return getattr(self, '_m_width', None)


    class Lists(KaitaiStruct):
        """
        .. seealso::
           kcap.md 6.8
        """
        def __init__(self, num_lists, _io, _parent=None, _root=None):
            super(Kcap.Lists, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.num_lists = num_lists
            self._read()

        def _read(self):
            self.type_class = KaitaiStream.resolve_enum(Kcap.TypeClass, self._io.read_u1())
            self.encoding = self._io.read_u1()
            self.zero = self._io.read_bytes(2)
            if not self.zero == b"\x00\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00\x00", self.zero, self._io, u"/types/lists/seq/2")
            self.num_items = self._io.read_u4le()
            self.num_distinct = self._io.read_u4le()
            self.zero2 = self._io.read_bytes(4)
            if not self.zero2 == b"\x00\x00\x00\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00\x00\x00\x00", self.zero2, self._io, u"/types/lists/seq/5")
            self.base = self._io.read_u8le()
            self.lengths = []
            for i in range(self.num_lists):
                self.lengths.append(self._io.read_u4le())

            if self.num_items > 0:
                pass
                self.items = Kcap.Values(int(self.type_class), self.encoding, self.num_distinct, self.num_items, self._io, self, self._root)



        def _fetch_instances(self):
            pass
            for i in range(len(self.lengths)):
                pass

            if self.num_items > 0:
                pass
                self.items._fetch_instances()



    class Pids(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.Pids, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.num_pids = self._io.read_u4le()
            self.encoding = self._io.read_u1()
            self.zero = self._io.read_bytes(3)
            if not self.zero == b"\x00\x00\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00\x00\x00", self.zero, self._io, u"/types/pids/seq/2")
            self.base = self._io.read_u8le()
            self.len_decoded = self._io.read_u4le()
            self.zero2 = self._io.read_bytes(4)
            if not self.zero2 == b"\x00\x00\x00\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00\x00\x00\x00", self.zero2, self._io, u"/types/pids/seq/5")
            self.frame = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass


    class Record(KaitaiStruct):
        """
        .. seealso::
           kcap.md 2.1
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.Record, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.magic = self._io.read_bytes(4)
            if not self.magic == b"\x89\x4B\x43\x50":
                raise kaitaistruct.ValidationNotEqualError(b"\x89\x4B\x43\x50", self.magic, self._io, u"/types/record/seq/0")
            self.kind = KaitaiStream.resolve_enum(Kcap.Kind, self._io.read_u1())
            self.flags = self._io.read_u1()
            self.version = self._io.read_u2le()
            self.len_payload = self._io.read_u8le()
            self.number = self._io.read_u8le()
            self.payload_crc = self._io.read_u4le()
            self.header_crc = self._io.read_u4le()
            _on = (int(self.kind) if self.version == 1 else 0)
            if _on == 1:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.FileHeader(_io__raw_payload, self, self._root)
            elif _on == 10:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.BlobBlock(_io__raw_payload, self, self._root)
            elif _on == 11:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.BlobManifest(_io__raw_payload, self, self._root)
            elif _on == 12:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.Body(_io__raw_payload, self, self._root)
            elif _on == 13:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.Checkpoint(_io__raw_payload, self, self._root)
            elif _on == 14:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.Footer(_io__raw_payload, self, self._root)
            elif _on == 15:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.Body(_io__raw_payload, self, self._root)
            elif _on == 2:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.Body(_io__raw_payload, self, self._root)
            elif _on == 3:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.Body(_io__raw_payload, self, self._root)
            elif _on == 4:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.Chunk(_io__raw_payload, self, self._root)
            elif _on == 5:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.ChunkIndex(_io__raw_payload, self, self._root)
            elif _on == 6:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.Tail(_io__raw_payload, self, self._root)
            elif _on == 7:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.State(_io__raw_payload, self, self._root)
            elif _on == 8:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.Body(_io__raw_payload, self, self._root)
            elif _on == 9:
                pass
                self._raw_payload = self._io.read_bytes(self.len_payload)
                _io__raw_payload = KaitaiStream(BytesIO(self._raw_payload))
                self.payload = Kcap.Heartbeat(_io__raw_payload, self, self._root)
            else:
                pass
                self.payload = self._io.read_bytes(self.len_payload)
            self.padding = self._io.read_bytes((8 - self.len_payload % 8) % 8)


        def _fetch_instances(self):
            pass
            _on = (int(self.kind) if self.version == 1 else 0)
            if _on == 1:
                pass
                self.payload._fetch_instances()
            elif _on == 10:
                pass
                self.payload._fetch_instances()
            elif _on == 11:
                pass
                self.payload._fetch_instances()
            elif _on == 12:
                pass
                self.payload._fetch_instances()
            elif _on == 13:
                pass
                self.payload._fetch_instances()
            elif _on == 14:
                pass
                self.payload._fetch_instances()
            elif _on == 15:
                pass
                self.payload._fetch_instances()
            elif _on == 2:
                pass
                self.payload._fetch_instances()
            elif _on == 3:
                pass
                self.payload._fetch_instances()
            elif _on == 4:
                pass
                self.payload._fetch_instances()
            elif _on == 5:
                pass
                self.payload._fetch_instances()
            elif _on == 6:
                pass
                self.payload._fetch_instances()
            elif _on == 7:
                pass
                self.payload._fetch_instances()
            elif _on == 8:
                pass
                self.payload._fetch_instances()
            elif _on == 9:
                pass
                self.payload._fetch_instances()
            else:
                pass


    class Section(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.Section, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.tag = KaitaiStream.resolve_enum(Kcap.SectionTag, self._io.read_u2le())
            self.zero = self._io.read_bytes(2)
            if not self.zero == b"\x00\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00\x00", self.zero, self._io, u"/types/section/seq/1")
            self.len_content = self._io.read_u4le()
            _on = self.tag
            if _on == Kcap.SectionTag.pids:
                pass
                self._raw_content = self._io.read_bytes(self.len_content)
                _io__raw_content = KaitaiStream(BytesIO(self._raw_content))
                self.content = Kcap.Pids(_io__raw_content, self, self._root)
            elif _on == Kcap.SectionTag.strings:
                pass
                self._raw_content = self._io.read_bytes(self.len_content)
                _io__raw_content = KaitaiStream(BytesIO(self._raw_content))
                self.content = Kcap.Strings(_io__raw_content, self, self._root)
            else:
                pass
                self.content = self._io.read_bytes(self.len_content)
            self.padding = self._io.read_bytes((8 - self.len_content % 8) % 8)


        def _fetch_instances(self):
            pass
            _on = self.tag
            if _on == Kcap.SectionTag.pids:
                pass
                self.content._fetch_instances()
            elif _on == Kcap.SectionTag.strings:
                pass
                self.content._fetch_instances()
            else:
                pass


    class SizedBody(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.SizedBody, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.len_body = self._io.read_u8le()
            self._raw_body = self._io.read_bytes(self.len_body)
            _io__raw_body = KaitaiStream(BytesIO(self._raw_body))
            self.body = Kcap.Body(_io__raw_body, self, self._root)


        def _fetch_instances(self):
            pass
            self.body._fetch_instances()


    class State(KaitaiStruct):
        """The tables are payloads of chunks; the body tells the length of each.
        
        .. seealso::
           kcap.md 4.5
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.State, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.tables = Kcap.SizedBody(self._io, self, self._root)
            self.chunks = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass
            self.tables._fetch_instances()


    class Strings(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.Strings, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.blocks = []
            i = 0
            while not self._io.is_eof():
                self.blocks.append(Kcap.BloomBlock(self._io, self, self._root))
                i += 1



        def _fetch_instances(self):
            pass
            for i in range(len(self.blocks)):
                pass
                self.blocks[i]._fetch_instances()



    class TableEntry(KaitaiStruct):
        """
        .. seealso::
           kcap.md 8.2
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.TableEntry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.ofs_record = self._io.read_u8le()
            self.len_record = self._io.read_u8le()
            self.ofs_index = self._io.read_u8le()
            self.number = self._io.read_u4le()
            self.num_rows = self._io.read_u4le()
            self.ts_min = self._io.read_s8le()
            self.ts_max = self._io.read_s8le()
            self.ord_min = self._io.read_s8le()
            self.ord_max = self._io.read_s8le()


        def _fetch_instances(self):
            pass


    class Tail(KaitaiStruct):
        """
        .. seealso::
           kcap.md 7.2
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Kcap.Tail, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.ord_first = self._io.read_s8le()
            self.num_rows = self._io.read_u4le()
            self.num_columns = self._io.read_u4le()
            self.len_decoded = self._io.read_u4le()
            self.zero = self._io.read_bytes(4)
            if not self.zero == b"\x00\x00\x00\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00\x00\x00\x00", self.zero, self._io, u"/types/tail/seq/4")
            self.frame = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass


    class TailContent(KaitaiStruct):
        def __init__(self, num_rows, num_columns, _io, _parent=None, _root=None):
            super(Kcap.TailContent, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.num_rows = num_rows
            self.num_columns = num_columns
            self._read()

        def _read(self):
            self.entries = []
            for i in range(self.num_columns):
                self.entries.append(Kcap.Entry(self._io, self, self._root))

            self._raw_columns = []
            self.columns = []
            for i in range(self.num_columns):
                self._raw_columns.append(self._io.read_bytes(self.entries[i].len_decoded))
                _io__raw_columns = KaitaiStream(BytesIO(self._raw_columns[i]))
                self.columns.append(Kcap.Column(self.entries[i], self.num_rows, _io__raw_columns, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()

            for i in range(len(self.columns)):
                pass
                self.columns[i]._fetch_instances()



    class Text(KaitaiStruct):
        """
        .. seealso::
           kcap.md 6.7
        """
        def __init__(self, encoding, num_distinct, num_values, _io, _parent=None, _root=None):
            super(Kcap.Text, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.encoding = encoding
            self.num_distinct = num_distinct
            self.num_values = num_values
            self._read()

        def _read(self):
            if  (((not (self.is_plain))) and (self.num_distinct > 1)) :
                pass
                self.codes = []
                for i in range(self.num_values):
                    _on = (1 if self.num_distinct <= 256 else (2 if self.num_distinct <= 65536 else 4))
                    if _on == 1:
                        pass
                        self.codes.append(self._io.read_u1())
                    elif _on == 2:
                        pass
                        self.codes.append(self._io.read_u2le())
                    elif _on == 4:
                        pass
                        self.codes.append(self._io.read_u4le())


            self.lengths = []
            for i in range((self.num_values if self.is_plain else self.num_distinct)):
                _on = self.encoding & 2 != 0
                if _on == False:
                    pass
                    self.lengths.append(self._io.read_u2le())
                elif _on == True:
                    pass
                    self.lengths.append(self._io.read_u4le())

            self.entries = []
            for i in range((self.num_values if self.is_plain else self.num_distinct)):
                self.entries.append(self._io.read_bytes(self.lengths[i]))



        def _fetch_instances(self):
            pass
            if  (((not (self.is_plain))) and (self.num_distinct > 1)) :
                pass
                for i in range(len(self.codes)):
                    pass
                    _on = (1 if self.num_distinct <= 256 else (2 if self.num_distinct <= 65536 else 4))
                    if _on == 1:
                        pass
                    elif _on == 2:
                        pass
                    elif _on == 4:
                        pass


            for i in range(len(self.lengths)):
                pass
                _on = self.encoding & 2 != 0
                if _on == False:
                    pass
                elif _on == True:
                    pass

            for i in range(len(self.entries)):
                pass


        @property
        def is_plain(self):
            if hasattr(self, '_m_is_plain'):
                return self._m_is_plain

            self._m_is_plain = self.encoding & 1 != 0
            return getattr(self, '_m_is_plain', None)


    class Values(KaitaiStruct):
        def __init__(self, type_class, encoding, num_distinct, num_values, _io, _parent=None, _root=None):
            super(Kcap.Values, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.type_class = type_class
            self.encoding = encoding
            self.num_distinct = num_distinct
            self.num_values = num_values
            self._read()

        def _read(self):
            _on = self.type_class
            if _on == 1:
                pass
                self.content = Kcap.Integers(self.encoding, self.num_values, self._io, self, self._root)
            elif _on == 2:
                pass
                self.content = Kcap.Integers(self.encoding, self.num_values, self._io, self, self._root)
            elif _on == 3:
                pass
                self.content = Kcap.Floats(self.num_values, self._io, self, self._root)
            elif _on == 4:
                pass
                self.content = Kcap.Bools(self.num_values, self._io, self, self._root)
            elif _on == 5:
                pass
                self.content = Kcap.Text(self.encoding, self.num_distinct, self.num_values, self._io, self, self._root)
            elif _on == 6:
                pass
                self.content = Kcap.Text(self.encoding, self.num_distinct, self.num_values, self._io, self, self._root)
            elif _on == 7:
                pass
                self.content = Kcap.Text(self.encoding, self.num_distinct, self.num_values, self._io, self, self._root)


        def _fetch_instances(self):
            pass
            _on = self.type_class
            if _on == 1:
                pass
                self.content._fetch_instances()
            elif _on == 2:
                pass
                self.content._fetch_instances()
            elif _on == 3:
                pass
                self.content._fetch_instances()
            elif _on == 4:
                pass
                self.content._fetch_instances()
            elif _on == 5:
                pass
                self.content._fetch_instances()
            elif _on == 6:
                pass
                self.content._fetch_instances()
            elif _on == 7:
                pass
                self.content._fetch_instances()



