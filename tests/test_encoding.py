"""Section 6: bytes against the vectors of RFCs and of Kafka's own tests; what has no vector, by an independent reader."""
import base64
import gzip
import hashlib
import hmac
import random
import struct
import urllib.parse
import zlib

import pytest
import statbadger

TS = 1700000000000
RECORD = b'{"host":"h1","cpu":1.5}'


def hexadecimal(text):
    return bytes(bytearray.fromhex(text.replace(' ', '').replace('\n', '')))


# -- CRC-32C ----------------------------------------------------------------------------------

@pytest.mark.parametrize('data, crc', [                     # RFC 3720, appendix B.4, and the check value of the polynomial
    (b'\0' * 32, 0x8a9136aa), (b'\xff' * 32, 0x62a8ab43), (bytes(bytearray(range(32))), 0x46dd794e),
    (bytes(bytearray(range(31, -1, -1))), 0x113fdb5c), (b'123456789', 0xe3069283), (b'', 0), (b'a', 0xc1d04330)])
def test_crc32c_gives_the_published_values(data, crc):
    assert statbadger.crc32c(data) == crc


def bit_by_bit(data):
    crc = 0xffffffff
    for byte in bytearray(data):
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def test_crc32c_of_any_length_is_that_of_the_polynomial():
    seed = random.randrange(1 << 30)
    print('seed', seed)
    dice = random.Random(seed)
    for n in list(range(55, 75)) + [dice.randrange(75, 3000) for _ in range(60)] + [54216, 70001]:
        data = bytes(bytearray(dice.getrandbits(8) for _ in range(n)))
        assert statbadger.crc32c(data) == bit_by_bit(data), n


# -- varints, records, batches ------------------------------------------------------------------

@pytest.mark.parametrize('number, encoded', [
    (0, '00'), (-1, '01'), (1, '02'), (-2, '03'), (63, '7e'), (64, '8001'), (-64, '7f'), (-65, '8101'), (300, 'd804'),
    (2147483647, 'feffffff0f')])
def test_varints_are_zigzag_with_the_low_bits_first(number, encoded):
    assert statbadger.varint(number) == hexadecimal(encoded)


def test_a_record_batch_has_the_bytes_that_kafka_python_writes():
    assert statbadger.record_batch([(TS, b'h1', RECORD)], False, -1, -1, -1) == hexadecimal("""
        0000000000000000 00000051 ffffffff 02 ac3aaa51 0000 00000000 0000018bcfe56800 0000018bcfe56800
        ffffffffffffffff ffff ffffffff 00000001
        3e0000000468312e7b22686f7374223a226831222c22637075223a312e357d00""")


def test_several_records_count_from_the_first_in_time_and_offset_and_name_their_producer():
    data = statbadger.record_batch([(TS, b'h1', RECORD), (TS + 1000, None, b'x')], False, 7, 0, 5)
    assert data[21:61] == struct.pack('>hiqqqhii', 0, 1, TS, TS + 1000, 7, 0, 5, 2)
    assert data.endswith(hexadecimal('10 00 d00f 02 01 02 78 00'))
    assert struct.unpack('>i', data[8:12])[0] == len(data) - 12
    assert struct.unpack('>I', data[17:21])[0] == bit_by_bit(data[21:])


def test_the_latest_time_need_not_be_the_last():
    data = statbadger.record_batch([(TS, None, b'a'), (TS + 9, None, b'b'), (TS + 3, None, b'c')], False, -1, -1, -1)
    assert struct.unpack('>qq', data[27:43]) == (TS, TS + 9)


def test_records_are_compressed_when_that_makes_them_smaller():
    records = [(TS + i, b'h1', RECORD * 20) for i in range(10)]
    plain, small = (statbadger.record_batch(records, yes, -1, -1, -1) for yes in (False, True))
    assert struct.unpack('>h', small[21:23])[0] == 1 and len(small) < len(plain) // 5
    assert gzip.decompress(small[61:]) == plain[61:]
    noise = [(TS, None, b''.join(hashlib.sha512(b'%d' % i).digest() for i in range(40)))]
    assert statbadger.record_batch(noise, True, -1, -1, -1)[21:23] == b'\0\0'
    assert statbadger.record_batch([(TS, None, b'x' * 400)], True, -1, -1, -1)[21:23] == b'\0\0'


@pytest.mark.parametrize('key, value', [                    # org.apache.kafka.common.utils.UtilsTest
    (b'21', -973932308), (b'foobar', -790332482), (b'a-little-bit-long-string', -985981536),
    (b'a-little-bit-longer-string', -1486304829), (b'lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8', -58897971),
    (b'abc', 479470107)])
def test_murmur2_is_that_of_the_java_client(key, value):
    assert statbadger.murmur2(key) == value & 0xffffffff


# -- fields of a reply --------------------------------------------------------------------------

def test_fields_come_one_after_the_other():
    fields = statbadger.Fields(struct.pack('>bhiqh', -1, -2, -3, -4, 3) + b'abc' + b'\0\0\0\2' + b'\0\1\0\2')
    assert (fields.int8(), fields.int16(), fields.int32(), fields.int64(), fields.text()) == (-1, -2, -3, -4, 'abc')
    assert fields.array(fields.int16) == [1, 2]


def test_texts_and_arrays_may_be_null():
    fields = statbadger.Fields(b'\xff\xff' + b'\xff\xff\xff\xff' * 2)
    assert fields.text() == '' and fields.bytes() == b'' and fields.array(fields.int8) == []


@pytest.mark.parametrize('data, read', [
    (b'\0', 'int16'), (b'\0\5ab', 'text'), (b'\0\0\0\5ab', 'bytes'), (b'', 'int8'), (b'\0\0', 'int32')])
def test_a_reply_that_is_cut_short_is_an_error(data, read):
    with pytest.raises(OSError):
        getattr(statbadger.Fields(data), read)()


def test_a_count_beyond_the_reply_allocates_nothing():
    fields = statbadger.Fields(b'\x7f\xff\xff\xff' + b'\0' * 100)
    with pytest.raises(OSError):
        fields.array(fields.int8)


# -- logins -------------------------------------------------------------------------------------

SERVER_FIRST = b'r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096'


def scram(algorithm='sha256', username='user'):
    return statbadger.Scram(algorithm, username, 'pencil', 'rOprNGfwEbeRWgbNEkqO')


def test_scram_is_that_of_rfc_7677():
    one = scram()
    assert one.first == b'n,,n=user,r=rOprNGfwEbeRWgbNEkqO'
    assert one.final(SERVER_FIRST) == (b'c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,'
                                       b'p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=')
    assert one.proves(b'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=')
    assert not one.proves(b'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=')
    assert not one.proves(b'e=unknown-user') and not one.proves(b'')


def test_scram_goes_with_sha512_too():
    one = scram('sha512')
    assert one.final(SERVER_FIRST).endswith(b'p=gMGXRcevScNtxZ6/8lQYpGtnsNAc3mGcmNomv+xnoOMw+3R2xNJdMNnzMlTN8PPC6wdp6dybEmD'
                                            b'YXYTxwnYPJQ==')
    assert one.proves(b'v=ZQnYEgWQMFmmsM8aQMF0nDDCy/AgCzkwk8CmMZYcMg0vSVlKDanekLtifDSeVGT4+5ZxXnJq199RVG2rR7N7Zw==')


def test_a_user_name_with_commas_and_equal_signs_is_escaped():
    assert scram(username='a,b=c').first == b'n,,n=a=2Cb=3Dc,r=rOprNGfwEbeRWgbNEkqO'


@pytest.mark.parametrize('challenge', [
    b'', b'e=other-error', b'r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096', SERVER_FIRST.replace(b'i=4096', b'i=100'),
    SERVER_FIRST.replace(b'i=4096', b'i=99999999999999999999'), SERVER_FIRST.replace(b'i=4096', b'i=-5'),
    SERVER_FIRST.replace(b'i=4096', b'i=2000000'), SERVER_FIRST.replace(b'gQ==', b'gQ'),
    b'r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096', b'\xff\xfe'])
def test_a_challenge_that_makes_no_sense_is_an_error_and_no_endless_work(challenge):
    with pytest.raises(OSError):
        scram().final(challenge)


def test_hmac_is_that_of_the_library():
    for algorithm in ('sha256', 'sha512', 'sha1'):
        for size in (0, 1, 63, 64, 65, 127, 128, 129, 1000):
            key = b'k' * size
            assert statbadger.hmac(algorithm, key, b'message') == hmac.new(key, b'message', algorithm).digest()


def test_basic_is_base64_of_utf8():
    login = u'Aladdin:open sesame'                          # RFC 7617, section 2
    assert statbadger.basic(login) == 'Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=='
    assert base64.b64decode(statbadger.basic(u'\xfc:' + 'x' * 100)[6:]).decode() == u'\xfc:' + 'x' * 100


# -- HTTP ---------------------------------------------------------------------------------------

def test_percent_encoding_leaves_only_unreserved_characters():
    text = u'a-Z0._~ /&=?#%+"\xe4\u20ac\n\0'
    encoded = statbadger.percent_encoded(text)
    assert urllib.parse.unquote(encoded) == text
    assert encoded.startswith('a-Z0._~%20%2F%26%3D') and encoded.endswith('%C3%A4%E2%82%AC%0A%00')


def test_gzip_is_one_member_without_a_time():
    data = b'some text, ' * 100
    packed = statbadger.gzipped(data)
    assert zlib.decompress(packed, 31) == data and packed[4:8] == b'\0\0\0\0' and packed == statbadger.gzipped(data)
