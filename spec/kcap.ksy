# The structures of spec/kcap.md for Kaitai Struct; numbers in "doc-ref" are its clauses.
#
# This describes intact captures: it checks no CRC, no hash and no limit, and does not resynchronise.
# Kaitai has no zstd: bodies, frames and the contents of TAILs come as they are stored. Decompress
# them and hand the bytes to the types `column` and `tail_content`, which describe what they hold.
meta:
  id: kcap
  title: kcap capture, format version 1.1
  file-extension: kcap
  license: Apache-2.0
  ks-version: "0.10"
  endian: le
doc-ref: kcap.md
seq:
  - id: records
    type: record
    repeat: eos
enums:
  kind:
    1: file_header
    2: source
    3: schema
    4: chunk
    5: chunk_index
    6: tail
    7: state
    8: loss
    9: heartbeat
    10: blob_block
    11: blob_manifest
    12: note
    13: checkpoint
    14: footer
    15: recovery
    16: segment
    17: seal
  codec:
    0: stored
    1: zstd
  range_form:
    0: block
    1: hole
    2: missing
  type_class:
    1: i64
    2: u64
    3: f64
    4: bool
    5: str
    6: bin
    7: json
    16: list
    17: list_i64
    18: list_u64
    19: list_f64
    20: list_bool
  presence:
    0: all
    1: bitmap
    2: numbers
  section_tag:
    1: pids
    2: strings
types:
  record:
    doc-ref: kcap.md 2.1
    seq:
      - id: magic
        contents: [0x89, KCP]
      - id: kind
        type: u1
        enum: kind
      - id: flags
        type: u1
        doc: bit 0, ancillary
      - id: version
        type: u2
      - id: len_payload
        type: u8
      - id: number
        type: u8
      - id: payload_crc
        type: u4
      - id: header_crc
        type: u4
      - id: payload
        size: len_payload
        type:
          switch-on: "version == 1 ? kind.to_i : 0"
          cases:
            1: file_header
            2: body
            3: body
            4: chunk
            5: chunk_index
            6: tail
            7: state
            8: body
            9: heartbeat
            10: blob_block
            11: blob_manifest
            12: body
            13: checkpoint
            14: footer
            15: body
      - id: padding
        size: (8 - len_payload % 8) % 8
  body:
    doc: JSON, perhaps compressed.
    doc-ref: kcap.md 4
    seq:
      - id: len_decoded
        type: u4
      - id: codec
        type: u1
        enum: codec
      - id: zero
        contents: [0, 0, 0]
      - id: data
        size-eos: true
  sized_body:
    seq:
      - id: len_body
        type: u8
      - id: body
        type: body
        size: len_body
  file_header:
    doc-ref: kcap.md 4.1
    seq:
      - id: file_id
        size: 16
      - id: major
        type: u2
      - id: minor
        type: u2
      - id: zero
        contents: [0, 0, 0, 0]
      - id: created_ns
        type: s8
      - id: body
        type: body
        size-eos: true
  state:
    doc: The tables are payloads of chunks; the body tells the length of each.
    doc-ref: kcap.md 4.5
    seq:
      - id: tables
        type: sized_body
      - id: chunks
        size-eos: true
  heartbeat:
    doc-ref: kcap.md 4.6
    seq:
      - id: now_ns
        type: s8
      - id: num_events
        type: u8
      - id: body
        type: sized_body
        if: not _io.eof
  chunk:
    doc-ref: kcap.md 6.1
    seq:
      - id: len_directory
        type: u4
      - id: directory
        type: directory
        size: len_directory
      - id: directory_crc
        type: u4
      - id: frames
        doc: Each one zstd frame, whose content is a `column`; of a decoded length of 0 no bytes.
        size: directory.entries[_index].len_stored
        repeat: expr
        repeat-expr: directory.num_columns
  directory:
    doc-ref: kcap.md 6.2
    seq:
      - id: number
        type: u4
      - id: num_rows
        type: u4
      - id: ord_min
        type: s8
      - id: ord_max
        type: s8
      - id: ts_min
        type: s8
      - id: ts_max
        type: s8
      - id: num_schema
        type: u4
      - id: num_columns
        type: u4
      - id: tail_first
        type: u8
      - id: num_tails
        type: u4
      - id: zero
        contents: [0, 0, 0, 0]
      - id: entries
        type: entry
        repeat: expr
        repeat-expr: num_columns
  entry:
    seq:
      - id: column_id
        type: u4
      - id: type_class
        type: u1
        enum: type_class
      - id: presence
        type: u1
        enum: presence
      - id: encoding
        type: u1
      - id: zero
        contents: [0]
      - id: num_present
        type: u4
      - id: base
        type: u8
      - id: num_distinct
        type: u4
      - id: ofs_frame
        type: u4
      - id: len_stored
        type: u4
      - id: len_decoded
        type: u4
      - id: crc
        type: u4
  column:
    doc: The decoded bytes of a frame.
    doc-ref: kcap.md 6.3 to 6.8
    params:
      - id: entry
        type: entry
      - id: num_rows
        type: u4
    seq:
      - id: bitmap
        size: (num_rows + 7) / 8
        if: entry.presence == presence::bitmap
      - id: row_numbers
        type: u2
        repeat: expr
        repeat-expr: entry.num_present
        if: entry.presence == presence::numbers
      - id: lists
        type: lists(entry.num_present)
        if: is_list
      - id: values
        type: values(entry.type_class.to_i, entry.encoding, entry.num_distinct, entry.num_present)
        if: not is_list
    instances:
      is_list:
        value: entry.type_class.to_i >= 16
  lists:
    doc-ref: kcap.md 6.8
    params:
      - id: num_lists
        type: u4
    seq:
      - id: type_class
        type: u1
        enum: type_class
      - id: encoding
        type: u1
      - id: zero
        contents: [0, 0]
      - id: num_items
        type: u4
      - id: num_distinct
        type: u4
      - id: zero2
        contents: [0, 0, 0, 0]
      - id: base
        type: u8
      - id: lengths
        type: u4
        repeat: expr
        repeat-expr: num_lists
      - id: items
        type: values(type_class.to_i, encoding, num_distinct, num_items)
        if: num_items > 0
  values:
    params:
      - id: type_class
        type: u1
      - id: encoding
        type: u1
      - id: num_distinct
        type: u4
      - id: num_values
        type: u4
    seq:
      - id: content
        type:
          switch-on: type_class
          cases:
            1: integers(encoding, num_values)
            2: integers(encoding, num_values)
            3: floats(num_values)
            4: bools(num_values)
            5: text(encoding, num_distinct, num_values)
            6: text(encoding, num_distinct, num_values)
            7: text(encoding, num_distinct, num_values)
  integers:
    doc-ref: kcap.md 6.5
    params:
      - id: encoding
        type: u1
      - id: num_values
        type: u4
    seq:
      - id: first
        type: u8
        if: is_delta
      - id: offsets
        type:
          switch-on: width
          cases:
            1: u1
            2: u2
            3: u4
            4: u8
        repeat: expr
        repeat-expr: num_offsets
        if: width > 0 and not is_planes
      - id: planes
        doc: The lowest byte of every offset, then the next of every one, and so on.
        size: num_offsets
        repeat: expr
        repeat-expr: "width == 2 ? 2 : width == 3 ? 4 : 8"
        if: is_planes
    instances:
      num_offsets:
        value: "is_delta ? num_values - 1 : num_values"
      width:
        value: encoding & 0x0f
      is_delta:
        value: (encoding & 0x10) != 0
      is_divided:
        value: (encoding & 0x20) != 0
      is_planes:
        value: (encoding & 0x40) != 0
  floats:
    params:
      - id: num_values
        type: u4
    seq:
      - id: values
        type: f8
        repeat: expr
        repeat-expr: num_values
  bools:
    params:
      - id: num_values
        type: u4
    seq:
      - id: bitmap
        size: (num_values + 7) / 8
  text:
    doc-ref: kcap.md 6.7
    params:
      - id: encoding
        type: u1
      - id: num_distinct
        type: u4
      - id: num_values
        type: u4
    seq:
      - id: codes
        type:
          switch-on: "num_distinct <= 256 ? 1 : num_distinct <= 65536 ? 2 : 4"
          cases:
            1: u1
            2: u2
            4: u4
        repeat: expr
        repeat-expr: num_values
        if: not is_plain and num_distinct > 1
      - id: lengths
        type:
          switch-on: (encoding & 2) != 0
          cases:
            false: u2
            true: u4
        repeat: expr
        repeat-expr: "is_plain ? num_values : num_distinct"
      - id: entries
        size: lengths[_index]
        repeat: expr
        repeat-expr: "is_plain ? num_values : num_distinct"
    instances:
      is_plain:
        value: (encoding & 1) != 0
  tail:
    doc-ref: kcap.md 7.2
    seq:
      - id: ord_first
        type: s8
      - id: num_rows
        type: u4
      - id: num_columns
        type: u4
      - id: len_decoded
        type: u4
      - id: zero
        contents: [0, 0, 0, 0]
      - id: frame
        doc: One zstd frame, whose content is a `tail_content`.
        size-eos: true
  tail_content:
    params:
      - id: num_rows
        type: u4
      - id: num_columns
        type: u4
    seq:
      - id: entries
        type: entry
        repeat: expr
        repeat-expr: num_columns
      - id: columns
        type: column(entries[_index], num_rows)
        size: entries[_index].len_decoded
        repeat: expr
        repeat-expr: num_columns
  chunk_index:
    doc-ref: kcap.md 8.1
    seq:
      - id: number
        type: u4
      - id: num_rows
        type: u4
      - id: ts_min
        type: s8
      - id: ts_max
        type: s8
      - id: seq_min
        type: s8
      - id: seq_max
        type: s8
      - id: ord_min
        type: s8
      - id: ord_max
        type: s8
      - id: num_backward
        type: u4
      - id: num_timeless
        type: u4
      - id: num_types
        type: u4
      - id: num_state_rows
        type: u4
      - id: types
        type: event_type
        repeat: expr
        repeat-expr: num_types
      - id: padding
        size: (8 - _io.pos % 8) % 8
      - id: sections
        type: section
        repeat: eos
  event_type:
    seq:
      - id: num_events
        type: u4
      - id: len_name
        type: u2
      - id: name
        size: len_name
  section:
    seq:
      - id: tag
        type: u2
        enum: section_tag
      - id: zero
        contents: [0, 0]
      - id: len_content
        type: u4
      - id: content
        size: len_content
        type:
          switch-on: tag
          cases:
            'section_tag::pids': pids
            'section_tag::strings': strings
      - id: padding
        size: (8 - len_content % 8) % 8
  pids:
    seq:
      - id: num_pids
        type: u4
      - id: encoding
        type: u1
      - id: zero
        contents: [0, 0, 0]
      - id: base
        type: u8
      - id: len_decoded
        type: u4
      - id: zero2
        contents: [0, 0, 0, 0]
      - id: frame
        doc: One zstd frame, whose content is `integers`; none where the decoded length is 0.
        size-eos: true
  strings:
    seq:
      - id: blocks
        type: bloom_block
        repeat: eos
  bloom_block:
    seq:
      - id: words
        type: u4
        repeat: expr
        repeat-expr: 8
  table_entry:
    doc-ref: kcap.md 8.2
    seq:
      - id: ofs_record
        type: u8
      - id: len_record
        type: u8
      - id: ofs_index
        type: u8
      - id: number
        type: u4
      - id: num_rows
        type: u4
      - id: ts_min
        type: s8
      - id: ts_max
        type: s8
      - id: ord_min
        type: s8
      - id: ord_max
        type: s8
  footer:
    doc-ref: kcap.md 8.2
    seq:
      - id: file_id
        size: 16
      - id: chain
        size: 32
      - id: num_entries
        type: u8
      - id: table
        type: table_entry
        repeat: expr
        repeat-expr: num_entries
      - id: totals
        type: sized_body
      - id: padding
        size: _io.size - 24 - _io.pos
      - id: ofs_footer
        type: u8
      - id: len_payload
        type: u8
      - id: end_magic
        contents: ["KCAPEND", 0x0a]
  checkpoint:
    doc-ref: kcap.md 8.3
    seq:
      - id: file_id
        size: 16
      - id: chain
        size: 32
      - id: ofs_previous
        type: u8
      - id: previous_hash
        size: 32
      - id: num_entries
        type: u8
      - id: table
        type: table_entry
        repeat: expr
        repeat-expr: num_entries
      - id: totals
        type: sized_body
  blob_block:
    doc-ref: kcap.md 9.2
    seq:
      - id: len_decoded
        type: u4
      - id: codec
        type: u1
        enum: codec
      - id: zero
        contents: [0, 0, 0]
      - id: mask
        size: 4
      - id: content
        size-eos: true
        process: xor(mask)
        type: blob_content
  blob_content:
    seq:
      - id: sha256
        size: 32
      - id: data
        doc: The block, or one zstd frame that holds it.
        size-eos: true
  blob_manifest:
    doc-ref: kcap.md 9.4
    seq:
      - id: len_body
        type: u4
      - id: num_ranges
        type: u4
      - id: ranges
        type: blob_range
        repeat: expr
        repeat-expr: num_ranges
      - id: body
        type: body
        size: len_body
  blob_range:
    seq:
      - id: length
        type: u8
      - id: form
        type: u4
        enum: range_form
      - id: reason
        type: u4
      - id: sha256
        size: 32
